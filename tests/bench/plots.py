"""The plots of docs/performance.md, from the figures that ./run has written down."""

import json
import os

import svg


def draw(figures, directory):
    """Draws the plots whose figures are there."""
    os.makedirs(directory, exist_ok=True)
    for name, (part, plot) in PLOTS.items():
        path = os.path.join(figures, f"{part}.json")
        if os.path.exists(path):
            with open(path) as file:
                drawn = plot(json.load(file))
            with open(os.path.join(directory, f"{name}.svg"), "w") as file:
                file.write(str(drawn))


def start(figures):
    peers = [(name, float(millions)) for name, millions in figures["baseline"]]
    ours = [(f"rvm run … true, {name}", figures[name][0]) for name in ("warm", "cold")]
    rows = sorted(peers + ours, key=lambda row: row[1])
    return svg.bars("A start to its end: instructions of all processes, guest and host's kernel",
                    "million instructions", ["others", "rvm"],
                    [(name, {series(name): value}) for name, value in rows])


def series(name):
    return "rvm" if name.startswith("rvm") else "others"


def restore(figures):
    points = [(touched / (1 << 20), saved, restored)
              for _, touched, _, saved, restored in figures["sizes"]]
    return svg.lines("Checkpoint and restore over the memory that is saved",
                     "MiB in the checkpoint's memory", "ms",
                     {"checkpoint": [(mib, saved) for mib, saved, _ in points],
                      "restore": [(mib, restored) for mib, _, restored in points]})


def memory(figures):
    groups = [(f"{kind}, one of {count}", {what: max(kib, 0) / 1024 for what, kib in kinds.items()})
              for kind, by_count in figures.items() for count, kinds in by_count]
    return svg.stacked("What the host has less of for an idle sandbox", "MiB", groups)


def costs(title, axis, unit):
    """A plot of a table of costs, by operation and peer, on a logarithmic scale."""
    def plot(figures):
        operations = next(iter(figures.values()))
        return svg.bars(title, axis, list(figures), [
            (operation, {peer: values[operation] / unit for peer, values in figures.items()})
            for operation in operations], log=True)
    return plot


# By name: the part of the figures, and how they are drawn.
PLOTS = {
    "start": ("starts", start),
    "restore": ("checkpoints", restore),
    "memory": ("sandboxes", memory),
    "files": ("files", costs("Operations on files, kvm engine",
                             "thousand instructions, logarithmic", 1e3)),
    "programs": ("programs", costs("Programs that work with files, kvm engine",
                                   "million instructions, logarithmic", 1e6)),
}
