"""Plots as SVG: bars side by side, bars in parts, and lines. They are readable on a light and on a dark
page, whose choice the browser passes on, and without colours, by the order of legend and bars."""

import math
from xml.sax.saxutils import escape

WIDTH = 820
LEFT, RIGHT = 210, 70
TOP = 74
BAR, GAP, STEP = 11, 2, 12

# The colours of series, on a light and a dark page: the first for what is compared with, the last
# for what is measured.
COLOURS = [("#6e7781", "#8b949e"), ("#bf3989", "#f778ba"), ("#8250df", "#a98bf0"),
           ("#1a7f6b", "#3fb9a0"), ("#0969da", "#4b9bff"), ("#bc4c00", "#f0883e")]

STYLE = """  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .page { fill: #ffffff } .title { font-size: 15px; font-weight: 600 } .small { font-size: 10px }
  .grid { stroke: #d1d9e0 } .axis { stroke: #59636e }
"""
DARK = """    text { fill: #e6edf3 } .page { fill: #0d1117 }
    .grid { stroke: #30363d } .axis { stroke: #9198a1 }
"""


class Plot:
    """What has been drawn on a page; `height` is that of the plotted area."""

    def __init__(self, title, axis, names, height):
        self.height, self.parts = height, []
        self.text(16, 26, title, "title")
        self.text((LEFT + WIDTH - RIGHT) / 2, TOP + height + 38, axis, anchor="middle")
        self.legend(names)

    def legend(self, names):
        """A square in the colour of each series, unless there is but one."""
        x = 16
        for number, name in enumerate(names if len(names) > 1 else []):
            self.rectangle(x, 42, 11, 11, number, len(names))
            self.text(x + 16, 52, name)
            x += 38 + 6.8 * len(name)

    def text(self, x, y, words, kind="", anchor="start"):
        self.parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" '
                          f'text-anchor="{anchor}">{escape(words)}</text>')

    def line(self, x1, y1, x2, y2, kind):
        self.parts.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" '
                          f'y2="{y2:.1f}"/>')

    def rectangle(self, x, y, width, height, number, count):
        self.parts.append(f'<rect class="{colour(number, count)}" x="{x:.1f}" y="{y:.1f}" '
                          f'width="{max(width, 0):.1f}" height="{height}"/>')

    def curve(self, points, number, count):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline class="{colour(number, count)} curve" points="{path}"/>')
        for x, y in points:
            self.parts.append(f'<circle class="{colour(number, count)}" cx="{x:.1f}" '
                              f'cy="{y:.1f}" r="4"/>')

    def __str__(self):
        height = TOP + self.height + 52
        body = "\n".join(self.parts)
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
                f'width="{WIDTH}" height="{height}" role="img">\n<style>\n{STYLE}{colours(0, "  ")}'
                f'  .curve {{ fill: none; stroke-width: 2 }}\n'
                f"  @media (prefers-color-scheme: dark) {{\n{DARK}{colours(1, '    ')}"
                f"    .curve {{ fill: none }}\n  }}\n</style>\n"
                f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>\n{body}\n</svg>\n')


def colours(page, indent):
    return "".join(f"{indent}.s{number} {{ fill: {pair[page]}; stroke: {pair[page]} }}\n"
                   for number, pair in enumerate(COLOURS))


def colour(number, count):
    """Of the series of this number of so many."""
    return f"s{number if count == len(COLOURS) else len(COLOURS) - count + number}"


def bars(title, axis, names, groups, log=False):
    """Bars to the right in groups, each with values by name, of which it may lack some."""
    rows = sum(len(values) for _, values in groups)
    plot = Plot(title, axis, names, rows * STEP + len(groups) * BAR + GAP)
    scale = Scale([value for _, values in groups for value in values.values()], log)
    draw_grid(plot, scale)
    y = TOP + BAR / 2
    for group, values in groups:
        plot.text(LEFT - 10, y + len(values) * STEP / 2 + 4, group, anchor="end")
        for name, value in values.items():
            end = scale.place(value)
            plot.rectangle(LEFT, y, end - LEFT, BAR - 1, names.index(name), len(names))
            plot.text(end + 5, y + BAR - 2, number(value), "small")
            y += STEP
        y += BAR
    return plot


def stacked(title, axis, groups):
    """One bar to the right for each group, in parts by name."""
    names = list(groups[0][1])
    plot = Plot(title, axis, names, len(groups) * 2 * BAR + GAP)
    scale = Scale([sum(values.values()) for _, values in groups], False)
    draw_grid(plot, scale)
    for row, (group, values) in enumerate(groups):
        y, x = TOP + row * 2 * BAR + 4, LEFT
        plot.text(LEFT - 10, y + BAR, group, anchor="end")
        for name, value in values.items():
            width = scale.place(value) - LEFT
            plot.rectangle(x, y, width, 16, names.index(name), len(names))
            x += width
        plot.text(x + 5, y + BAR + 1, number(sum(values.values())), "small")
    return plot


def lines(title, axis, upward, series):
    """Lines by name, through points from left to right."""
    plot = Plot(title, axis, list(series), 260)
    points = [point for line in series.values() for point in line]
    across = Scale([x for x, _ in points], False)
    up = Scale([y for _, y in points], False)
    bottom = TOP + plot.height
    draw_grid(plot, across)
    for tick in up.ticks:
        y = bottom - up.share(tick) * plot.height
        plot.line(LEFT, y, WIDTH - RIGHT, y, "grid")
        plot.text(LEFT - 10, y + 4, number(tick), anchor="end")
    plot.text(LEFT - 60, TOP + plot.height / 2, upward, anchor="end")
    for index, line in enumerate(series.values()):
        places = [(across.place(x), bottom - up.share(y) * plot.height) for x, y in line]
        plot.curve(places, index, len(series))
        for (x, y), (_, value) in zip(places, line):
            plot.text(x, y - 9, number(value), "small", "middle")
    return plot


class Scale:
    """From values to places; a logarithmic one begins at a power of ten."""

    def __init__(self, values, log):
        self.log = log
        if log:
            self.low = math.floor(math.log10(min(values)))
            self.high = math.ceil(math.log10(max(values)))
            self.ticks = [10 ** power for power in range(self.low, self.high + 1)]
        else:
            step = nice(max(values) / 5)
            self.low, self.high = 0, math.ceil(max(values) / step) * step
            self.ticks = [step * count for count in range(round(self.high / step) + 1)]

    def share(self, value):
        value = math.log10(value) if self.log else value
        return (value - self.low) / (self.high - self.low)

    def place(self, value):
        return LEFT + self.share(value) * (WIDTH - LEFT - RIGHT)


def nice(step):
    """The next of 1, 2 and 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step)


def draw_grid(plot, scale):
    bottom = TOP + plot.height
    for tick in scale.ticks:
        x = scale.place(tick)
        plot.line(x, TOP, x, bottom, "grid")
        plot.text(x, bottom + 17, number(tick), anchor="middle")
    plot.line(LEFT, TOP, LEFT, bottom, "axis")
    plot.line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis")


def number(value):
    """With three digits, and thousands apart."""
    if value >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"
