"""The demo on real input: scikit-learn's handwritten digits, dense and token-sparse.

Two small class-conditional PixArt models ship in ``assets/``: ``dense``, and ``lt30``, the dense one
fine-tuned until it had learned how much each block keeps at which timesteps (DiffRatio-LT, 30 % compression
on average). ``run.run_demo`` samples both, ``train`` is the script that made them.
"""
