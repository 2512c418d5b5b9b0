"""Few-Sample KD's algebra (Li et al. 2020, arXiv 1812.01839): which layers of a student answer to which of its teacher
(`alignment`), the least squares between them (`ridge`) from sums alone (`moments`), and what they give as part of the
weights (`absorb`); how much is computed at once (`room`)."""
