"""Products whose epilogue is a row step: Triton kernels without an operator of their own."""
