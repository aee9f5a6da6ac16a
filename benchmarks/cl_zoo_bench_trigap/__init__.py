"""`trigap`: ten tasks of continual instruction tuning from the SAME paper (Xie et al., ICML 2026).

PMC-VQA (P), DocVQA (D), ChartQA (C), IconQA (I), InfographicVQA (G), ArxivQA (A), Roadside (R), ChemVQA (H), FloodNetVQA (F) and CLEVR (L): a long
sequence over medicine, documents, charts, roads, chemistry and disaster, in the order of the released configuration
(Prism, config/benchmarks/TriGap.py). Instructions are on the Hugging Face hub; images come from the ten data sets themselves, as its card says.

File names are those of that configuration, and no others are looked for. Where it says `_sub`, a part of a larger file was taken; how it was drawn is not
told. How many records a file holds is stated neither there nor on the data's card, since `4w` and `3k` in a name are no counts; nothing is
counted against an official number. The instruction sentences are known of IconQA, ArxivQA and CLEVR, which UCIT has too, and left blank elsewhere.

Documents (DocVQA, InfographicVQA) are scored by edit distance to the nearest right answer, without the threshold of the measure as it is defined, which the
strict score has; all else by equality in upper case. A right answer may be a list of texts.

The methods compared by default are those for which Prism has settings on this benchmark, with zero-shot and joint training as bounds.
"""

from __future__ import annotations

from pathlib import Path

from cl_zoo import Described

load = Described(Path(__file__).parent / "trigap.yaml")
"""The benchmark on a folder of data."""
