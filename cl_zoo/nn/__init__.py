"""What methods are built from: the bank of experts and its mixes, soft prompts, anchors and routes.

Every name here is public and documented; a method imports it from `cl_zoo.nn` and from nowhere deeper.
"""

from __future__ import annotations

from cl_zoo.features.encoder import cosines
from cl_zoo.nn.anchors import Anchors, Routed, View, image_view, state_view, text_view
from cl_zoo.nn.answering import Around, OtherUpdates, OtherWeights
from cl_zoo.nn.bank import ExpertBank, name_of
from cl_zoo.nn.budget import rank_of_ups, widths
from cl_zoo.nn.chosen import Choice
from cl_zoo.nn.groups import Groups
from cl_zoo.nn.inputs import ImageInputs, input_products
from cl_zoo.nn.layer import BankConfig, BankLayer, full_precision
from cl_zoo.nn.memory import draw_samples, pack_sample, unpack_sample
from cl_zoo.nn.mixes import AllOnes, PerSample, PerToken, Scaled, SharedDown, per_sample, spread, weighted
from cl_zoo.nn.placing import KeepsExperts, adapters, bank_parts, mixture
from cl_zoo.nn.pool import PromptPool, distance, nearest
from cl_zoo.nn.prompts import Prompted, insert, read_first, token_rows
from cl_zoo.nn.routers import (
    FirstToken,
    Prefill,
    PromptMean,
    TokenGate,
    gate_sums,
    router,
    top_gates,
    top_softmax,
)
from cl_zoo.nn.spectra import Sketch, along, directions, principal
from cl_zoo.nn.still import evaluating, standing_still
from cl_zoo.nn.subspaces import singular, span, strongest
from cl_zoo.nn.tokens import Tokens, Told
from cl_zoo.nn.watched import Watched

__all__ = [
    "AllOnes",
    "Anchors",
    "Around",
    "BankConfig",
    "BankLayer",
    "Choice",
    "ExpertBank",
    "FirstToken",
    "Groups",
    "ImageInputs",
    "KeepsExperts",
    "OtherUpdates",
    "OtherWeights",
    "PerSample",
    "PerToken",
    "Prefill",
    "PromptMean",
    "PromptPool",
    "Prompted",
    "Routed",
    "Scaled",
    "SharedDown",
    "Sketch",
    "TokenGate",
    "Tokens",
    "Told",
    "View",
    "Watched",
    "adapters",
    "along",
    "bank_parts",
    "cosines",
    "directions",
    "distance",
    "draw_samples",
    "evaluating",
    "full_precision",
    "gate_sums",
    "image_view",
    "input_products",
    "insert",
    "mixture",
    "name_of",
    "nearest",
    "pack_sample",
    "per_sample",
    "principal",
    "rank_of_ups",
    "read_first",
    "router",
    "singular",
    "span",
    "spread",
    "standing_still",
    "state_view",
    "strongest",
    "text_view",
    "token_rows",
    "top_gates",
    "top_softmax",
    "unpack_sample",
    "weighted",
    "widths",
]
