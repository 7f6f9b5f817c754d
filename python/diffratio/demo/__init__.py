"""The demo: scikit-learn's handwritten digits, sampled by a dense and by a token-sparse model."""
