"""What people do wrong, and the one message that tells them: see corpus.py."""
