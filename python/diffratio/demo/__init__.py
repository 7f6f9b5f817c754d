"""The demo on real input: scikit-learn's handwritten digits, dense and token-sparse.

Two small class-conditional PixArt models ship in ``assets/``: ``dense`` and ``mod30`` (the dense one
fine-tuned with uniform Mixture-of-Depths routing at 30 % compression). ``run.run_demo`` samples both,
``train`` is the script that made them.
"""
