"""`mllm-dcl` and `mllm-acl`: continual learning of domains and of abilities (Zhao et al., MLLM-CL, 2025).

Domains, in the order of the released scripts and of MCITlib: remote sensing (R), medicine (M), autonomous driving (A), science (S) and
finance (F). Training and test questions are of one kind. The scripts put a sentence behind the prompts of the test files of medicine and finance, and in
finance which one goes by the right answer: by it a model is told whether to say yes or no, or a letter. Both are done here, since
published scores were measured so (`closing` in `mllm_dcl.yaml`).

Abilities: text in images (O) and visual perception (V), two of the four that the paper learns. Test questions are of other data sets than
training ones. Left out are the second ability, mathematics, and the last one, GUI agent. The answers to MathVista are read by an OpenAI model
where a program cannot, and its script takes the right answers from a table that is not among the data; the GUI agent is scored by a server to which
answers are sent. No public rule for either was found without these. A sequence of two tasks is none of the paper's results.
Its scripts name OCR's training file `train_without_dense_caption.json`, and keep visual perception in `tallyqa150k/ty_cl_sft.json` and `CV-Benchv2`; both those
and the README's names are found. For text in images the scripts put a space between image and question, where here a newline stands as
everywhere.

The official rules are lenient: what is right if it stands somewhere in an answer is right in a long one more often. They are kept;
`--scoring strict` shows equality. The methods compared by default are those that the paper's scripts train, plain LoRA, replay, a mixture of LoRAs and
MR-LoRA, with zero-shot and joint training as bounds.
"""

from __future__ import annotations

from pathlib import Path

from cl_zoo import Described

domains = Described(Path(__file__).parent / "mllm_dcl.yaml")
"""`mllm-dcl`: the five domains on a folder of data."""
abilities = Described(Path(__file__).parent / "mllm_acl.yaml")
"""`mllm-acl`: two of the four abilities on a folder of data."""
