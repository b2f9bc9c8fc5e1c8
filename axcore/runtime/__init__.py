"""Running what was built, on a board or on a PC: an engine, and the loop that speaks to it alone.

What is imported on a board needs numpy, ml_dtypes, Pillow, tokenizers and pluggy, no more.
"""
