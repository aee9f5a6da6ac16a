"""What methods are built from: the bank of experts and its mixes, soft prompts, anchors and routes.

Every name here is public and documented; a method imports it from `cl_zoo.nn` and from nowhere deeper.
"""

from __future__ import annotations

from cl_zoo.features.encoder import cosines
from cl_zoo.nn.anchors import Anchors, Routed, View, image_view, state_view, text_view
from cl_zoo.nn.answering import Around, OtherWeights
from cl_zoo.nn.bank import ExpertBank, name_of
from cl_zoo.nn.budget import widths
from cl_zoo.nn.layer import BankConfig, BankLayer, full_precision
from cl_zoo.nn.mixes import AllOnes, PerSample, PerToken, Scaled, SharedDown, per_sample, spread
from cl_zoo.nn.placing import KeepsExperts, adapters, bank_parts, mixture
from cl_zoo.nn.prompts import Prompted, embeddings, insert, token_rows
from cl_zoo.nn.routers import FirstToken, Prefill, PromptMean, TokenGate, gate_sums, router, top_gates
from cl_zoo.nn.still import evaluating, standing_still

__all__ = [
    "AllOnes",
    "Anchors",
    "Around",
    "BankConfig",
    "BankLayer",
    "ExpertBank",
    "FirstToken",
    "KeepsExperts",
    "OtherWeights",
    "PerSample",
    "PerToken",
    "Prefill",
    "PromptMean",
    "Prompted",
    "Routed",
    "Scaled",
    "SharedDown",
    "TokenGate",
    "View",
    "adapters",
    "bank_parts",
    "cosines",
    "embeddings",
    "evaluating",
    "full_precision",
    "gate_sums",
    "image_view",
    "insert",
    "mixture",
    "name_of",
    "per_sample",
    "router",
    "spread",
    "standing_still",
    "state_view",
    "text_view",
    "token_rows",
    "top_gates",
    "widths",
]
