#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Charts of measured results, as SVG files without any library.

    bench/plot.py rate --law LAW.jsonl [--vs VS.jsonl] --read 800 OUT.svg
    bench/plot.py token TRACE.json OUT.svg [--forward N]

rate: decoding over the memory limit, beside the law, from what bench/law.py
and bench/vs_llamacpp.py wrote with --out. token: reads, waits and computing of
one decoded token, from `mlx-flash run --trace`; by default the one in the
middle.
"""

import argparse
import json
import sys
from html import escape

INK, GREY, PAPER = "#1f2933", "#9aa5b1", "#ffffff"
OURS, THEIRS, READ, WAIT = "#0b69a3", "#c7511f", "#62b0e8", "#d64545"


class Chart:
    """A canvas whose plot area maps data to pixels."""

    def __init__(self, width, height, title):
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = 64, 24, 48, 52
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} '
            f'{height}" font-family="system-ui, sans-serif" font-size="13" '
            f'fill="{INK}"><title>{escape(title)}</title>',
            f'<rect width="{width}" height="{height}" rx="6" fill="{PAPER}"/>',
        ]
        self.text(self.left, 28, title, weight=600, size=15)

    def scale(self, x_max, y_max, x_min=0):
        self.x_min, self.x_max, self.y_max = x_min, x_max, y_max

    def x(self, value):
        inner = self.width - self.left - self.right
        share = (value - self.x_min) / (self.x_max - self.x_min)
        return self.left + share * inner

    def y(self, value):
        inner = self.height - self.top - self.bottom
        return self.height - self.bottom - value / self.y_max * inner

    def text(self, x, y, text, anchor="start", weight=400, size=13, fill=INK):
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
            f'font-weight="{weight}" font-size="{size}" fill="{fill}">'
            f"{escape(text)}</text>")

    def line(self, points, colour, dash="", width=2):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" '
            f'stroke-width="{width}" stroke-dasharray="{dash}"/>')

    def rect(self, x, y, width, height, colour):
        self.parts.append(
            f'<rect x="{x:.2f}" y="{y:.1f}" width="{max(width, 0.4):.2f}" '
            f'height="{height:.1f}" fill="{colour}"/>')

    def bars(self, bars, colour):
        """(x, y, width, height) of each, as one path: files stay small."""
        path = "".join(f"M{x:.1f} {y:.1f}h{max(w, 0.3):.1f}v{h:.1f}H{x:.1f}z"
                       for x, y, w, h in bars)
        self.parts.append(f'<path fill="{colour}" d="{path}"/>')

    def dot(self, x, y, colour):
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')

    def square(self, x, y, colour):
        self.rect(x - 4.5, y - 4.5, 9, 9, colour)

    def grid(self, xs, ys, x_label, y_label):
        for value in ys:
            y = self.y(value)
            self.line([(self.left, y), (self.width - self.right, y)],
                      "#e4e7eb", width=1)
            self.text(self.left - 8, y + 4, f"{value:g}", "end", fill=GREY)
        for value in xs:
            self.text(self.x(value), self.height - self.bottom + 20,
                      f"{value:g}", "middle", fill=GREY)
        self.text(self.width - self.right, self.height - 12, x_label, "end",
                  fill=GREY)
        self.text(self.left - 8, self.top - 6, y_label, "end", fill=GREY)

    def write(self, path):
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(self.parts) + "\n</svg>\n")


def rows_of(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def steps(most, count):
    """Round values from 0 to `most`, about `count` of them."""
    raw = most / count
    for unit in (0.1, 0.2, 0.25, 0.5, 1, 2, 2.5, 5):
        for power in range(-3, 6):
            step = unit * 10 ** power
            if step >= raw:
                best = step if "best" not in locals() else min(best, step)
    return [i * best for i in range(int(most / best) + 1)]


def rate(options):
    rows = sorted((r for r in rows_of(options.law)
                   if r["read_mb_s"] == options.read),
                  key=lambda r: r["limit_mb"])
    if not rows:
        sys.exit(f"{options.law}: nothing at {options.read} MB/s")
    pass_mb = rows[0]["pass_mb"]
    # What the limit does not give to weights, between the measured ones.
    def pinned(limit):
        points = [(r["limit_mb"], r["pinned_mb"]) for r in rows]
        if len(points) == 1:
            return limit - (points[0][0] - points[0][1])
        for (x0, y0), (x1, y1) in zip(points, points[1:]):
            if limit <= x1 or x1 == points[-1][0]:
                return y0 + (limit - x0) * (y1 - y0) / (x1 - x0)
        return 0
    theirs = [r for r in rows_of(options.vs)] if options.vs else []
    theirs = [(float(r["memory"].removesuffix("MB")), r["llamacpp_tok_s"])
              for r in theirs if r["read"] == f"{options.read}MB"]
    x_max = rows[-1]["limit_mb"] * 1.08
    y_max = max(r["law_tok_s"] for r in rows) * 1.15
    chart = Chart(680, 380, f"{rows[0]['model']}: decoding under a memory limit,"
                            f" disk held to {options.read} MB/s")
    chart.scale(x_max, y_max)
    chart.grid(steps(x_max, 7), steps(y_max, 5), "memory limit, MB", "tok/s")
    curve = [(x, options.read / (pass_mb - max(0, pinned(x))))
             for x in range(int(rows[0]["limit_mb"] * 0.5), int(x_max), 20)
             if pinned(x) < pass_mb]
    chart.line([(chart.x(x), chart.y(y)) for x, y in curve if y <= y_max], GREY,
               "6 4")
    for row in rows:
        chart.dot(chart.x(row["limit_mb"]), chart.y(row["tok_s"]), OURS)
    for limit, value in theirs:
        chart.square(chart.x(limit), chart.y(value), THEIRS)
    legend = [("mlx-flash", OURS), ("the law: B / (M - R)", GREY)]
    if theirs:
        legend.insert(1, ("llama.cpp, mmap", THEIRS))
    for i, (name, colour) in enumerate(legend):
        y = chart.top + 14 + 22 * i
        chart.square(chart.left + 18, y - 4, colour)
        chart.text(chart.left + 32, y, name)
    chart.write(options.out)


LANES = [("computing", OURS), ("waiting for the disk", WAIT),
         ("reads under way", READ)]


def token(options):
    with open(options.trace, encoding="utf-8") as file:
        events = json.load(file)
    if isinstance(events, dict):
        events = events["traceEvents"]
    events = [e for e in events if e.get("ph") == "X"]
    forwards = [e for e in events if e["name"] == "forward"]
    decode = [e for e in forwards if e["args"]["rows"] == 1] or forwards
    if not decode:
        sys.exit(f"{options.trace}: no forward")
    number = len(decode) // 2 if options.forward is None else options.forward
    chosen = decode[number]
    begin, end = chosen["ts"], chosen["ts"] + chosen["dur"]
    lanes = {name: [] for name, _ in LANES}
    for e in events:
        if e is chosen or e["name"] == "forward":
            continue
        if e["ts"] + e["dur"] < begin or e["ts"] > end:
            continue
        lane = ("waiting for the disk" if e["name"].startswith("wait ")
                else "reads under way" if e["name"].startswith("read ")
                else "computing")
        lanes[lane].append((max(e["ts"], begin), min(e["ts"] + e["dur"], end)))
    chart = Chart(900, 300, f"one token, {(end - begin) / 1000:.0f} ms")
    chart.left = 150
    chart.scale((end - begin) / 1000, 1)
    chart.grid(steps((end - begin) / 1000, 8), [], "ms", "")
    for i, (name, colour) in enumerate(LANES):
        top = 58 + 62 * i
        chart.text(chart.left - 12, top + 26, name, "end")
        rows = stack(lanes[name]) if name == "reads under way" else [lanes[name]]
        height = 44 / max(1, len(rows))
        bars = []
        for k, row in enumerate(rows):
            for start, stop in row:
                x = chart.x((start - begin) / 1000)
                width = chart.x((stop - begin) / 1000) - x
                bars.append((x, top + k * height, width, height * 0.9))
        chart.bars(bars, colour)
    chart.write(options.out)


def stack(bars):
    """Bars in as few rows as keep them apart."""
    rows = []
    for bar in sorted(bars):
        for row in rows:
            if row[-1][1] <= bar[0]:
                row.append(bar)
                break
        else:
            rows.append([bar])
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("rate")
    one.add_argument("--law", required=True)
    one.add_argument("--vs")
    one.add_argument("--read", type=int, required=True)
    one.add_argument("out")
    one.set_defaults(run=rate)
    two = commands.add_parser("token")
    two.add_argument("trace")
    two.add_argument("out")
    two.add_argument("--forward", type=int)
    two.set_defaults(run=token)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
