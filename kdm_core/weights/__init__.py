"""Weights of networks that others trained and that metrics need: what they are, where they are."""

from kdm_core.weights.store import Found, WeightsMissing, WeightsSource, WeightsSources, find

__all__ = ["Found", "WeightsMissing", "WeightsSource", "WeightsSources", "find"]
