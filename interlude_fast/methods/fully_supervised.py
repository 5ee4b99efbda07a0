"""Supervised on all labels of the training images: what a method with few labels is measured against."""

from __future__ import annotations

from .supervised import Supervised


class FullySupervised(Supervised):
    every_label = True
