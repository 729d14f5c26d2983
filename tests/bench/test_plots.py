"""Claims about plots and figures: python3 -m unittest discover -s tests/bench"""

import json
import os
import tempfile
import unittest
from xml.etree import ElementTree

import files
import plots
import svg

SVG = "{http://www.w3.org/2000/svg}"

COSTS = {"runc": {"stat, cold": 6000, "unlink": 13000},
         files.SHARED: {"stat, cold": 54000, "unlink": 118000}}

FIGURES = {
    "starts": {"baseline": [["crun run … true", "18"]], "cold": [78, 80, ""],
               "warm": [49, 52, ""]},
    "checkpoints": {"sizes": [[0, 44 << 20, 30, 117, 42], [256, 298 << 20, 30, 596, 48]]},
    "sandboxes": {"cold": [[1, {"monitor": 900, "guest": 46000, "kernel": -20}]]},
    "files": COSTS, "programs": COSTS,
}


class Plots(unittest.TestCase):
    def test_each_plot_is_well_formed_and_within_its_page(self):
        with tempfile.TemporaryDirectory() as work:
            for part, figures in FIGURES.items():
                with open(os.path.join(work, f"{part}.json"), "w") as file:
                    json.dump(figures, file)
            plots.draw(work, work)
            for name in plots.PLOTS:
                page = ElementTree.parse(os.path.join(work, f"{name}.svg")).getroot()
                self.assert_within(page, name)

    def assert_within(self, page, name):
        width, height = (float(page.get(side)) for side in ("width", "height"))
        for bar in page.iter(f"{SVG}rect"):
            x, y = float(bar.get("x", 0)), float(bar.get("y", 0))
            self.assertLessEqual(x + float(bar.get("width")), width, name)
            self.assertLessEqual(y + float(bar.get("height")), height, name)

    def test_a_plot_whose_figures_are_missing_stays_as_it_is(self):
        with tempfile.TemporaryDirectory() as work:
            path = os.path.join(work, "files.svg")
            with open(path, "w") as file:
                file.write("before")
            plots.draw(work, work)
            with open(path) as file:
                self.assertEqual(file.read(), "before")
            self.assertEqual(os.listdir(work), ["files.svg"])

    def test_a_logarithmic_scale_goes_from_a_power_of_ten_to_another(self):
        scale = svg.Scale([20, 3000], log=True)
        self.assertEqual(scale.ticks, [10, 100, 1000, 10000])
        self.assertEqual(scale.place(10), svg.LEFT)
        self.assertEqual(scale.place(10000), svg.WIDTH - svg.RIGHT)
        self.assertAlmostEqual(scale.share(100), 1 / 3)

    def test_words_of_figures_are_no_markup(self):
        text = str(svg.bars("a < b", "&", ["x"], [("<rect>", {"x": 1})]))
        self.assertIn("a &lt; b", text)
        self.assertNotIn("<rect>", text)


class Figures(unittest.TestCase):
    def test_figures_are_told_from_what_a_kernel_says(self):
        said = "[    0.1] virtio: 3 x\r\nstat, cold: 5400\r\nunlink: x\nread, a MiB: 7\n"
        self.assertEqual(dict(files.parsed(said)), {"stat, cold": 5400, "read, a MiB": 7})


if __name__ == "__main__":
    unittest.main()
