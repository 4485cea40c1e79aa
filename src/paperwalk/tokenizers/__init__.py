"""Text as integers and back: by character, and by byte pairs."""

from paperwalk.tokenizers.bpe import END_OF_TEXT, BytePairTokenizer
from paperwalk.tokenizers.characters import CharTokenizer

__all__ = ["END_OF_TEXT", "BytePairTokenizer", "CharTokenizer"]
