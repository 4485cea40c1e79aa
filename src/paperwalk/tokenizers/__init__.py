"""Text as integers and back: by character, and by byte pairs as GPT-2 and as CLIP have them."""

from paperwalk.tokenizers.bpe import END_OF_TEXT, BytePairTokenizer
from paperwalk.tokenizers.characters import CharTokenizer
from paperwalk.tokenizers.clip import ClipTokenizer

__all__ = ["END_OF_TEXT", "BytePairTokenizer", "CharTokenizer", "ClipTokenizer"]
