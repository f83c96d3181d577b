"""The report of planted verifications: one file, whole, escaped, with the verdict first."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_pages import (
    CLASSES,
    HOSTILE,
    NOTE,
    Page,
    bench_json,
    page_of,
    planted,
)

from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.errors import ResultError
from dfer_deploy.files import json_text
from dfer_deploy.measurement.bench_result import BenchResult
from dfer_deploy.report.changes import MAX_PICTURED

CASES = {
    "equivalent": planted(4200, (0, 1), synthetic=NOTE),
    "different": planted(630, (60,), to_wrong=True, failures=["UAR differs by 9.5 points, at most 0.5 is accepted"]),
    "undecided": planted(12),
    "absent class": planted(70, (3,), absent=2),
    "hostile names": planted(40, (2,), names=HOSTILE),
    "many flips": planted(600, (400, 300)),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    return {
        case: page_of(tmp_path_factory.mktemp("page"), content, bench=bench_json()) for case, content in CASES.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_the_page_is_whole_and_needs_nothing_from_outside(pages: dict[str, Page], case: str) -> None:
    page = pages[case]
    assert page.wrong == []
    names = {tag for tag, _ in page.tags}
    assert names.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form", "image", "foreignobject"})
    for tag, attributes in page.tags:
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            assert key not in ("src", "href") or value.startswith(("data:", "#")), (tag, value[:80])
            assert not re.search(r"url\((?!#)", value), (tag, value[:80])
    style = re.search(r"<style>(.*?)</style>", page.path.read_text(encoding="utf-8"), re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)), "the charts of one page must not share ids"
    used = {
        match for _, attributes in page.tags for v in attributes.values() for match in re.findall(r"url\(#(.*?)\)", v)
    }
    used |= {attributes["href"][1:] for attributes in page.all("use")}
    assert used <= set(ids)
    assert page.path.stat().st_size < 3_000_000
    assert [path.name for path in page.path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("case", "word", "sentence"),
    [
        ("equivalent", "✓ Verified", "within ±0.5 points of PyTorch fp32's"),
        ("different", "✗ Not verified", "candidate 0: UAR differs by 9.5 points, at most 0.5 is accepted"),
        ("undecided", "? Undecided", "12 clips are too few to decide"),
    ],
)
def test_the_verdict_comes_first(pages: dict[str, Page], case: str, word: str, sentence: str) -> None:
    page = pages[case]
    beginning = page.text[page.text.index("dfer-deploy · verification") :][:700]
    assert word in beginning
    assert sentence in beginning


def test_failures_outweigh_what_is_open(tmp_path: Path) -> None:
    page = page_of(tmp_path, planted(12, failures=["a logit differs by 3, at most 0.01 is accepted"]))
    assert "✗ Not verified" in page.text
    assert "What is open" in page.text


def test_what_failed_beside_the_answers_is_not_blamed_on_them(tmp_path: Path) -> None:
    answers_differ = "What is served does not answer as PyTorch fp32 does."
    page = page_of(tmp_path, planted(12, failures=["a logit differs by 3, at most 0.01 is accepted"]))
    assert answers_differ in page.text
    page = page_of(tmp_path, planted(12) | {"failures": ["2 of 14 clips could not be read, at most 5% is accepted"]})
    assert "✗ Not verified" in page.text
    assert answers_differ not in page.text
    assert "but something else failed." in page.text


def test_the_sentence_says_whether_a_server_was_asked(tmp_path: Path) -> None:
    content = planted(2000)
    assert "UAR and WAR of every way of serving are within ±0.5 points" in page_of(tmp_path, content).text
    content["left_out"] = {"Triton": "--in-process omits it"}
    text = page_of(tmp_path, content).text
    assert "UAR and WAR in process are within ±0.5 points of PyTorch fp32's" in text
    assert "no error is outside its limit; no server was run." in text
    assert "every way of serving are" not in text
    assert "Triton, since --in-process omits it" in text
    content |= planted(12, failures=["a logit differs by 3"]) | {"left_out": content["left_out"]}
    assert "What runs in process does not answer as PyTorch fp32 does." in page_of(tmp_path, content).text


def test_what_is_accepted_is_said_and_how_near_the_graphs_are_to_it(tmp_path: Path) -> None:
    content = planted(12)
    page = page_of(tmp_path, content)
    assert "4.8" in page.words
    assert "at most 30 times what rounding to fp32 costs the same model in PyTorch fp32." in page.text
    assert "A logit differs by at most 0.01, and one of the temporal head alone by 0.01." in page.text
    assert "of all answers change" not in page.text, "the default limits nothing"
    content["limits"] |= {"flips": 0.01, "recall_drop": 2.0, "calibration_rise": 0.5}
    for sentence in ("At most 1 % of all answers change.", "by more than 2 points.", "rises by at most 0.5 points."):
        assert sentence in page_of(tmp_path, content).text


def test_clips_that_count_once_are_not_taken_for_pooled_ones(tmp_path: Path) -> None:
    content = planted(2000)
    content["comparisons"][0]["equivalence"]["clips"] = 1990
    text = page_of(tmp_path, content).text
    assert "Decided on 1,990 clips of 2,000: those with the same frames count once." in text
    content["comparisons"][0]["equivalence"]["clips"] = 2010
    assert "Decided on 2,010 clips, those of earlier verifications included." in page_of(tmp_path, content).text


def test_drawn_data_is_named_where_the_verdict_stands(pages: dict[str, Page]) -> None:
    text = pages["equivalent"].text
    assert text.index(NOTE) < text.index("Each way of serving")
    assert "Synthetic data" not in pages["undecided"].text


def test_every_number_of_the_matrices_and_recalls_is_text(pages: dict[str, Page]) -> None:
    content, page = CASES["different"], pages["different"]
    for answers_of in (content["truth"], content["comparisons"][0]):
        for row in answers_of["confusion"]:
            for count in row:
                assert str(count) in page.words
    before, after = (found["recalls"]["anger"] for found in (content["truth"], content["comparisons"][0]))
    assert f"{before:.1f} %" in page.words
    assert f"{after - before:+.2f}".replace("-", "−") in page.words


def test_every_number_of_a_candidate_stands_in_its_own_column(tmp_path: Path) -> None:
    content = planted(630, (9,), failures=["a logit differs by 0.75, at most 0.01 is accepted"])
    found = content["comparisons"][0]
    found |= {"uar": 81.5, "war": 82.25, "roundings": 3.5, "max_logit_difference": 0.75}
    found |= {"max_logit_difference_encoder": 0.5, "max_logit_difference_head": 0.25}
    found["equivalence"] |= {
        "lost": 7,
        "gained": 2,
        "mcnemar_p": 0.125,
        "delta_uar": -1.0,
        "interval_uar": {"low": -2.0, "high": 0.5, "method": "exact"},
        "delta_war": -3.0,
        "interval_war": {"low": -4.0, "high": -2.5, "method": "exact and bootstrap"},
    }
    text = page_of(tmp_path, content).text
    flips = "9 of 630 (0.655–2.69 %)"
    assert f"candidate 0 ✗ failed 81.50 82.25 {flips} 7 / 2 0.12 0.75 " in text
    assert "−1.00 −2.00 to +0.50 −3.00 −4.00 to −2.50 exact and bootstrap" in text
    assert "candidate 0 0.5 0.25 0.75 3.5" in text


def test_equal_matrices_are_drawn_once(tmp_path: Path) -> None:
    page = page_of(tmp_path, planted(630, (0, 0)))
    assert "PyTorch fp32 = candidate 0 = candidate 1" in page.text
    assert "No class's recall changed." in page.text
    assert "None: every candidate gives every clip the reference's answer." in page.text


def test_matrices_of_many_classes_are_listed_by_their_largest_confusions(tmp_path: Path) -> None:
    drawn = page_of(tmp_path, planted(310, names=[f"class {index}" for index in range(30)]))
    assert "labelled (clips)" in drawn.text
    content = planted(620, (9,), names=[f"class {index}" for index in range(31)])
    listed = page_of(tmp_path, content)
    assert "labelled (clips)" not in listed.text
    assert "The matrices of 31 classes are too large to draw" in listed.text
    assert listed.wrong == []
    for answers_of in (content["truth"], content["comparisons"][0]):
        confusion = np.array(answers_of["confusion"])
        clips = confusion.sum(axis=1)
        np.fill_diagonal(confusion, 0)
        row, column = np.unravel_index(confusion.argmax(), confusion.shape)
        share = f"{confusion[row, column] / clips[row]:.0%}"
        assert f"class {row} class {column} {confusion[row, column]} {share}" in listed.text


def test_another_checkpoint_than_the_bundles_is_named_where_the_verdict_stands(tmp_path: Path) -> None:
    content = planted(70)
    chain = content["provenance"]["chain"]
    chain.append({"stage": "compared checkpoint", "file": "", "sha256": "ab" * 32})
    assert "Another checkpoint" not in page_of(tmp_path, content).text
    chain[-1]["sha256"] = "cd" * 32
    text = page_of(tmp_path, content).text
    assert text.index(f"{'ab' * 6}…; the checkpoint {'cd' * 6}… was compared.") < text.index("Each way of serving")


def test_a_reference_that_only_guesses_is_named_where_the_verdict_stands(tmp_path: Path) -> None:
    content = planted(70)
    assert "No better than chance" not in page_of(tmp_path, content).text
    content["truth"]["uar"] = 14.0
    text = page_of(tmp_path, content).text
    assert text.index("PyTorch fp32 itself has a UAR of 14.00 % on 7 classes") < text.index("Each way of serving")


def test_a_class_without_a_clip_has_no_recall(pages: dict[str, Page]) -> None:
    text = pages["absent class"].text
    assert "No clip of neutral: the UAR is the mean over the other classes." in text
    assert "neutral (no clip)" in text


def test_hostile_names_are_text(tmp_path: Path) -> None:
    content = planted(40, (3,), names=HOSTILE, failures=["<b>x</b>"])
    content["comparisons"][0]["flips"][0]["clip"] = "<svg onload=alert(1)>"
    content["unreadable"] = {"<i>gone</i>": "<u>why</u>"}
    content["provenance"]["synthetic"] = "<script>alert(2)</script>"
    content["provenance"]["chain"][0]["file"] = "javascript:alert(3)"
    page = page_of(tmp_path, content)
    assert {"script", "i", "u", "em"}.isdisjoint(tag for tag, _ in page.tags)
    assert not any("onload" in attributes for attributes in page.all("svg"))
    for text in (
        *HOSTILE,
        "<b>x</b>",
        "<svg onload=alert(1)>",
        "<i>gone</i>",
        "<u>why</u>",
        "<script>alert(2)</script>",
    ):
        assert text in page.text
    assert page.wrong == []


def test_flipped_clips_have_frames_and_both_probability_vectors(tmp_path: Path) -> None:
    content = planted(630, (3,))
    folder = tmp_path / "clip"
    folder.mkdir()
    for index, frame in enumerate(drawn_clips(1, 32)[0]):
        Image.fromarray(frame).save(folder / f"{index:02}.png")
    flips = content["comparisons"][0]["flips"]
    clips = {flips[0]["clip"]: folder, flips[1]["clip"]: tmp_path / "is not there"}
    page = page_of(tmp_path, content, clips=clips)
    pictures = page.all("img")
    assert [picture["alt"] for picture in pictures] == [f"frame {n} of 16" for n in (1, 6, 11, 16)]
    for picture in pictures:
        kind, _, data = picture["src"].partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.size == (96, 96)
    for flip in flips:
        pairs = zip(flip["probabilities"], flip["answered_probabilities"], strict=True)
        assert all(f"{before:.3f} → {after:.3f}" in page.text for before, after in pairs)
    assert "share it only as far as their licence allows" in page.text


def test_candidates_with_the_same_probabilities_are_one_unless_they_answer_otherwise(tmp_path: Path) -> None:
    content = planted(630, (1, 0))
    first, second = content["comparisons"]
    (flip,) = first["flips"]
    second["flips"] = [flip]
    alike = page_of(tmp_path, content).text
    assert f"candidate 0, candidate 1: {flip['answered']}" in alike
    other = next(name for name in CLASSES if name != flip["answered"])
    second["flips"] = [flip | {"answered": other}]
    apart = page_of(tmp_path, content).text
    assert f"candidate 0: {flip['answered']}" in apart
    assert f"candidate 1: {other}" in apart


def test_the_surest_answers_come_first_and_their_number_is_bounded(pages: dict[str, Page]) -> None:
    content, page = CASES["many flips"], pages["many flips"]
    assert page.text.count("says") == MAX_PICTURED
    margins = {f["clip"]: f["margin"] for found in reversed(content["comparisons"]) for f in found["flips"]}
    surest = max(margins, key=lambda clip: margins[clip])
    assert page.text.index(surest) < min(
        page.text.index(clip) for clip in margins if clip != surest and clip in page.text
    )
    assert f"{len(margins)} clips of 600." in page.text
    assert f"{len(margins) - MAX_PICTURED - 200} more are in the JSON." in page.text


def test_the_page_carries_the_json_and_names_its_hash(pages: dict[str, Page], tmp_path: Path) -> None:
    content, page = CASES["equivalent"], pages["equivalent"]
    (link,) = page.all("a")
    data = base64.b64decode(link["href"].partition(",")[2])
    assert data == json_text(content).encode()
    assert hashlib.sha256(data).hexdigest() in page.text
    assert "ab" * 32 in page.text
    content = content | {"left_out": {"the engines": "x" * (1 << 20)}}
    assert page_of(tmp_path, content).all("a") == [], "a large JSON stays beside the page"


def test_load_is_drawn_with_its_machine(pages: dict[str, Page], tmp_path: Path) -> None:
    assert "a machine, 2 cores" in pages["undecided"].text
    assert "served, p99" in pages["undecided"].text
    few = page_of(tmp_path, CASES["undecided"], bench=bench_json() | {"requests": 50})
    assert "served, p95" in few.text
    assert "served, p99" not in few.text
    written = json_text(BenchResult.from_dict(bench_json()).to_dict()).encode()
    assert hashlib.sha256(written).hexdigest() in pages["undecided"].text
    assert "dfer-deploy bench BUNDLE --json bench.json" in page_of(tmp_path, CASES["undecided"]).text
    assert "dfer-deploy bench BUNDLE" not in few.text


def test_a_benchmark_of_another_bundle_is_refused(tmp_path: Path) -> None:
    other = bench_json()
    other["subject"]["manifest_sha256"] = "ef" * 32
    with pytest.raises(ResultError, match="with the manifest efefefefefef…, the verification of one with cdcdcdcdcdcd"):
        page_of(tmp_path, CASES["undecided"], other)
    without = copy.deepcopy(CASES["undecided"])
    del without["provenance"]["chain"][1]
    with pytest.raises(ResultError, match="the verification of one with none"):
        page_of(tmp_path, without, bench_json())


def blocks_json(*errors: float | None, logits: float | None = None) -> dict[str, Any]:
    """What ``verify --json`` writes about blocks with such errors, each with a tolerance of 1."""
    layers = [
        {"block": f"encoder.{index}", "precision": "fp16", "own": own, "rounding": 0.25, "relative": 0.5,
         "cosine": 0.5, "logits": logits, "not read": 0}
        for index, own in enumerate(errors)
    ]  # fmt: skip
    return {"clips": 3, "where": f"{HOSTILE[0]} leaves its tolerance", "layers": layers}


def test_the_page_says_where_the_error_comes_from(tmp_path: Path) -> None:
    content = planted(70) | {
        "localisation": blocks_json(0.25, 37.0, 2.0, None, logits=0.5),
        "bisection": {
            "keep_fp32": ["encoder.1"],
            "command": "dfer-deploy export <b>",
            "localisation": blocks_json(0.25),
            "trials": [],
        },
        "ensembles": {"dfer_stream": 2e-6, "dfer_encoded": None},
    }
    page = page_of(tmp_path, content)
    assert page.wrong == []
    assert f"on 3 of the worst clips: {HOSTILE[0]} leaves its tolerance." in page.text
    bars = [tag["style"] for tag in page.all("span") if tag.get("class") == "bar"]
    assert bars[:4] == ["width: 25.0%", "width: 100.0%", "width: 100.0%", "width: 100.0%"]
    assert [page.text.count(f"✗ {word}") for word in ("suspect", "fails")] == [1, 2]
    assert page.text.index("encoder.1") < page.text.index("suspect") < page.text.index("encoder.2")
    assert "encoder.3 fp16 ✗ fails not finite 1 0.5" in page.text
    assert "encoder.1 must stay fp32 for the limits to hold" in page.text
    assert "dfer-deploy export <b>" in page.text
    assert "dfer_stream: at most 2e-06; dfer_encoded: an answer is not finite or missing" in page.text
    within = page_of(tmp_path, planted(70) | {"localisation": blocks_json(0.25, 0.5)}).text
    assert "✗ suspect" not in within
    assert "|Δlogit|: the largest change" not in within
    for kept, sentence in (([], "No block must stay fp32"), (None, "precision is not the reason")):
        bisected = {"bisection": {"keep_fp32": kept, "localisation": blocks_json(0.25), "trials": []}}
        assert sentence in page_of(tmp_path, planted(70) | bisected).text
    assert "Where the error comes from" not in page_of(tmp_path, planted(70)).text


def test_an_answer_that_is_not_finite_is_named(tmp_path: Path) -> None:
    content = planted(630, failures=["a logit differs by inf, at most 0.01 is accepted"])
    found = content["comparisons"][0]
    found["max_logit_difference"] = None
    found["logit_errors"] = dict.fromkeys(found["logit_errors"])
    page = page_of(tmp_path, content)
    assert "not finite" in page.text


def test_a_matrix_says_whose_it_is_and_what_is_right_to_who_cannot_see_it(tmp_path: Path) -> None:
    content = planted(70, (0, 3))
    text = page_of(tmp_path, content).text
    for whose in ("PyTorch fp32 = candidate 0", "candidate 1"):
        assert f"confusion matrix of {whose} on 70 clips answered rightly: {CLASSES[0]}: " in text
    count = content["truth"]["confusion"][0][0]
    assert f"answered rightly: {CLASSES[0]}: {count} of 10; {CLASSES[1]}" in text


def test_a_clips_name_breaks_between_its_parts(tmp_path: Path) -> None:
    content = planted(70, (1,))
    content["comparisons"][0]["flips"][0]["clip"] = "a_<b>/c.mp4"
    assert "<h3>a_<wbr>&lt;b&gt;/<wbr>c.<wbr>mp4</h3>" in page_of(tmp_path, content).path.read_text(encoding="utf-8")
