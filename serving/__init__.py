"""What answers: everything that starts, talks to or swaps vLLM.

Knows storage. Does not know how a model learns, what a user or a page is, and stays light: importing it loads
no torch.
"""
