"""`coin`: eight tasks of continual instruction tuning (Chen et al., CoIN, NeurIPS 2024).

ScienceQA (S), TextVQA (T), ImageNet (I), GQA (G), VizWiz (V), Grounding on RefCOCO (R), VQAv2 (Q) and OCR-VQA (O), in CoIN's order. Images and
the files that hold references lie in `cl_dataset`, instructions in `playground`, as CoIN's scripts expect. The instructions come in
versions: `--benchmark coin` reads the original ones, `--benchmark 'coin[instructions=type2]'` others (`type1`, `type2`,
`diverse`, `10type`; `coin.yaml` lists the folders).

Half of ScienceQA is a question without an image. Boxes are shares of the image padded to a square. TextVQA is scored against the ten
answers in its own validation file; GQA and ScienceQA by their own files where these are there, else by the answers in the test file.

CoIN's scripts train on images padded to a square and evaluate TextVQA, GQA, VizWiz and OCR-VQA so, but ScienceQA, ImageNet, Grounding and
VQAv2 with the vision tower's own resize and centre crop. Here an image is prepared for evaluation as it was for training, with
LLaVA padded to a square, in all eight tasks: boxes are shares of the padded square, and a crop does not show the pixels that they name.
`--image-aspect crop` crops throughout, in training too; CoIN's mixture of both is not offered. Scores of those four tasks are
therefore not measured as CoIN's published ones were.

Sizes differ between publications: CoIN's files are larger than its slim test sets of 4,000, and the 20,000 ScienceQA problems that a later
paper trains on are more than there are (12,726). Checked are the counts of ScienceQA itself and the training counts of TextVQA and
VizWiz; the other sizes are what the files hold.

The methods compared by default are those that CoIN's paper compares, with zero-shot and joint training as its bounds.
"""

from __future__ import annotations

from pathlib import Path

from cl_zoo import Described

load = Described(Path(__file__).parent / "coin.yaml")
"""The benchmark on a folder of data."""
