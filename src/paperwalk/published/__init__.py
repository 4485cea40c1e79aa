"""What other libraries call our tensors: one file a paper, from a published checkpoint to our names and sizes."""
