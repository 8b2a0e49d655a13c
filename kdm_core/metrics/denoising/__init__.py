"""Whether a teacher denoises the data at hand as it should: what its weights cannot tell.

Wrong heads, a wrong sigma_data, a wrong value range or classes in another order load without an
error. Held-out samples show them: a trained denoiser beats the best constant and linear one at
every noise level (Wiener's filter, of the training split's mean and covariance), and the right
labels serve it better than wrong ones. Optimal denoisers obey both (they minimise the same error
among all functions), so only a fault, or a model that knows its training samples by heart, breaks
them by more than chance.
"""
