#!/usr/bin/env python3
"""Opens a page (--html) and a flame graph (--flamegraph) in headless Chromium and uses them: sort, open, search, zoom, dark.

The report is a real one with other stacks: a thousand sites, one of 200 frames, and names that mean something to HTML,
JavaScript, XML and terminals. What the page shows is compared with that report. As root, a few seconds:
bench/pages.py [--program MEMLEAK] [--keep FOLDER]
"""

import argparse
import base64
import copy
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import xml.dom.minidom

ODD = ["größe_日本語", '<script>document.title="OWNED"</script>', "a\"quote's & <b>",
       '</script><script>document.title="OWNED"</script>', "x;y z 12", "\u202egnp", "\x1b[31mred", "e\u0301_\U0001f389",
       "<!--", "${document.title=1}", "]]>"]
SITES, DEEP = 1000, 200

PAGE = """
const R = {}, q = id => document.getElementById(id), all = of => [...document.querySelectorAll(of)];
const rows = () => [...q("sites").tBodies[0].rows].filter(r => !r.classList.contains("stack"));
const column = i => rows().map(r => r.cells[i].textContent), heads = [...q("sites").tHead.rows[0].cells];
const type = text => { q("search").value = text; q("search").dispatchEvent(new Event("input")); return q("shown").textContent; };
const boxes = () => all(".flame div");
R.names = column(0); R.bytes = column(1);
heads[1].click(); R.up = column(1); heads[3].click(); R.counts = column(3); heads[1].click();
rows()[0].click(); R.opened = all("tr.stack li").map(li => li.title); rows()[0].click(); R.closed = all("tr.stack").length;
R.searched = SEARCHES.map(type); R.found = (type("deep_0"), all(".flame .found").length); type("");
R.boxes = boxes().length; boxes().find(b => b.textContent === "deep_0").click();
R.zoomed = boxes().map(b => b.textContent); q("whole").click(); R.reset = boxes().length;
R.looks = [0, 1].map(() => { q("look").click(); return document.documentElement.dataset.look + getComputedStyle(document.body).backgroundColor; });
R.title = document.title; R.strange = all("img, b b, h1 *, td *").length; R.wide = document.documentElement.scrollWidth > innerWidth;
document.documentElement.textContent = "RES" + "ULT" + btoa(unescape(encodeURIComponent(JSON.stringify(R)))) + "END";
"""

GRAPH = """
addEventListener("load", () => {
  const R = {}, boxes = () => [...document.querySelectorAll("#frames g")], title = g => g.querySelector("title").textContent;
  const seen = () => boxes().filter(g => !g.classList.contains("hide")).length;
  const click = e => e.dispatchEvent(new MouseEvent("click", { bubbles: true })), id = name => document.getElementById(name);
  R.titles = boxes().map(title); R.seen = seen();
  click(boxes().find(g => title(g).startsWith("deep_0 "))); R.zoomed = seen(); click(id("unzoom")); R.reset = seen();
  search("deep_0"); R.matched = id("matched").textContent; reset_search();
  R.heading = id("title").textContent; R.title = document.title;
  document.documentElement.textContent = "RES" + "ULT" + btoa(unescape(encodeURIComponent(JSON.stringify(R)))) + "END";
});
"""


def odd_report(saved):
    """Gives the saved report with other stacks, and bytes by responsible function."""
    report = saved["report"]
    stack, frame = report["stacks"][0], report["frames"][0]
    names = ODD + [f"deep_{i}" for i in range(DEEP)] + [f"site_{i:04}" for i in range(SITES)] + ["main"]
    report["frames"] = [dict(frame, ip=9 + i, offset=9 + i, function=name, symbol=name, file="größe<i>.cc", line=9 + i,
                             module="/tmp/<img src=x>.so", inlined=False) for i, name in enumerate(names)]
    main, deep, sites = len(names) - 1, len(ODD), len(ODD) + DEEP
    paths = [([i, main], 1_000_000 + i) for i in range(len(ODD))]
    paths += [([*range(sites - 1, deep - 1, -1), main], 5_000_000)]
    paths += [([sites + i, i % len(ODD), main], 10_000 + i) for i in range(SITES)]
    report["stacks"] = []
    for number, (frames, size) in enumerate(paths):
        held = {"bytes": size, "count": 1 + number % 7}
        holder = dict(stack["processes"][0], **held)
        report["stacks"].append(dict(copy.deepcopy(stack), stack_id=1 + number, frames=frames, processes=[holder], blocks=[], **held))
    report["totals"]["bytes"] = sum(size for _, size in paths)
    report["target"]["comm"] = '<b>"größe"'
    return saved, [names[frames[0]] for frames, _ in paths], [size for _, size in paths]


def shown(text):
    """A name as it is shown: what terminals act on is written out."""
    return text.replace("\u202e", "\\u{202e}").replace("\x1b", "\\x1b").replace("(...)", "")


def use(chromium, folder, name, script, end):
    """Opens the file with a script in it, and gives what that has found."""
    text = (folder / name).read_text()
    cut = text.rindex(end)
    script = f"<script><![CDATA[{script}]]></script>" if end == "</svg>" else f"<script>{script}</script>"
    used = folder / f"used-{name}"
    used.write_text(text[:cut] + script + text[cut:])
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/user",
               "--window-size=1200,900", "--dump-dom", used.as_uri()]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    found = re.search("RESULT(.*)END", said)
    assert found, f"{name}: the script has failed: {said[-500:]}"
    return json.loads(base64.b64decode(found[1]))


def check_page(found, names, sizes):
    number = lambda text: int(text.replace(",", ""))
    best = sorted(sizes, reverse=True)[:1000]
    assert [number(text) for text in found["bytes"]] == best and [number(text) for text in found["up"]] == sorted(sizes)[:1000]
    counts = [number(text) for text in found["counts"]]
    assert counts == sorted(counts, reverse=True)
    assert {shown(name) for name in names[:len(ODD)]} <= set(found["names"]) and found["names"][0] == f"deep_{DEEP - 1}"
    assert len(found["opened"]) == DEEP + 1 and found["closed"] == 0
    assert found["searched"] == [f"{number:,} of {len(names):,}" for number in (1, 1 + len(range(1, SITES, len(ODD))) + 1
                                 + len(range(3, SITES, len(ODD))), 0)], found["searched"]
    assert found["found"] == 1 and set(found["zoomed"]) == {"all", "main", *(f"deep_{i}" for i in range(DEEP))}
    assert found["reset"] == found["boxes"] and len(set(found["looks"])) == 2, found["looks"]
    assert "OWNED" not in found["title"] and found["strange"] == 0 and not found["wide"]


def check_graph(found, names, sizes):
    assert found["heading"] == '<b>"größe": outstanding bytes' and found["title"] == ""
    assert f"deep_0 ({5_000_000:,} bytes, {5_000_000 * 100 / sum(sizes):.2f}%)" in found["titles"]
    assert found["zoomed"] == DEEP + 2 and found["reset"] == found["seen"] == len(found["titles"])
    assert found["matched"] == f"Matched: {5_000_000 * 100 / sum(sizes):.1f}%", found["matched"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/memleak")
    parser.add_argument("--chromium", default="chromium")
    parser.add_argument("--keep", type=pathlib.Path, help="a folder for the files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        save, odd = folder / "saved.json", folder / "odd.json"
        run = [options.program, "--save", str(save), "-o", "0", "0.2", "--", "sh", "-c", "a=$(seq 9999); sleep 0.5"]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL, timeout=60)
        saved, names, sizes = odd_report(json.loads(save.read_text()))
        odd.write_text(json.dumps(saved))
        files = ["--html", str(folder / "odd.html"), "--flamegraph", str(folder / "odd.svg")]
        subprocess.run([options.program, "report", str(odd), *files], check=True, timeout=60)
        xml.dom.minidom.parse(str(folder / "odd.svg"))
        searches = json.dumps(["deep_0", "<script>", "(["]).replace("<", "\\u003c")
        page = use(options.chromium, folder, "odd.html", f"{{ const SEARCHES = {searches};{PAGE} }}", "</html>")
        check_page(page, names, sizes)
        check_graph(use(options.chromium, folder, "odd.svg", GRAPH, "</svg>"), names, sizes)
        print(f"the page ({len(names):,} sites) and the flame graph are as the report")


main()
