"""`ucit`: six tasks of continual instruction tuning from the HiDe-LLaVA paper (Guo et al., ACL 2025).

ImageNet-R (R), ArxivQA (A), VizWiz captions (V), IconQA (I), CLEVR-Math (C) and Flickr30k captions (F), in the paper's order RAVICF; its
two other orders are `--order AIRFCV` and `--order IFRCAV`. Images and instructions are downloaded by the user into one folder, the tree
of the official README; the names that the released scripts and MCITlib use instead are found too (`ucit.yaml` lists them).

What the official files hold and a reader may not expect: training ids come twice (VizWiz, CLEVR-Math, Flickr30k), so samples
are told apart by place; references of captions are numbered by the place of a record in its test file; some IconQA questions ask for
a word, others for a letter although their options are numbered; many ArxivQA questions come with a rationale that gives the answer away.
All are read as they are: scores are comparable only so.

The methods compared by default are those of the paper's main table, from no training to training on all tasks at once.
"""

from __future__ import annotations

from pathlib import Path

from cl_zoo import Described

load = Described(Path(__file__).parent / "ucit.yaml")
"""The benchmark on a folder of data."""
