"""Compare the outputs of two runs of a notebook: words exactly, numbers with a tolerance."""

import math
import re

NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w)"
)


def text_of(output) -> str:
    "The words of an output: a stream, or the plainest text of a result."
    if output.output_type == "stream":
        return output.text if output.name == "stdout" else ""
    data = output.get("data", {})
    return data.get("text/markdown") or data.get("text/plain") or ""


def cell_text(cell) -> str:
    texts = ["".join(text_of(o)) for o in cell.outputs if o.output_type != "error"]
    return re.sub(r"<Figure size [^>]*>", "<Figure>", "".join(texts))


def difference(committed: str, executed: str, tolerance: float) -> str | None:
    "None if the words are equal and the numbers nearly (relative tolerance); else what differs."
    words = [NUMBER.sub("#", t).split() for t in (committed, executed)]
    if words[0] != words[1]:
        for a, b in zip(*words, strict=False):
            if a != b:
                return f"{a!r} was committed, {b!r} came out"
        return f"{len(words[0])} words were committed, {len(words[1])} came out"
    values = [NUMBER.findall(t.replace(",", "")) for t in (committed, executed)]
    for a, b in zip(*(map(float, found) for found in values), strict=True):
        if not math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-5):
            return f"{a} was committed, {b} came out"
    return None


def differences(committed, executed, tolerance: float = 0.02) -> list[str]:
    "One line for each code cell whose text differs; cells tagged `volatile` are passed over."
    found = []
    pairs = zip(committed.cells, executed.cells, strict=True)
    for number, (a, b) in enumerate(pairs):
        if a.cell_type != "code" or "volatile" in a.metadata.get("tags", []):
            continue
        if said := difference(cell_text(a), cell_text(b), tolerance):
            found.append(f"cell {number} ({a.source.strip().splitlines()[-1][:60]}): {said}")
    return found
