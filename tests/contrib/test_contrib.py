"""What is in contrib can be read by what it is for: YAML that says what its table says, JSON with panels."""

import json
import re
import unittest
from pathlib import Path

import yaml

CONTRIB = Path(__file__).parents[2] / "contrib"
ROLE = CONTRIB / "ansible/gpu_handoff"
MODULES = {"assert", "copy", "apt", "file", "command", "find"}


class Contrib(unittest.TestCase):
    def test_the_role_is_yaml_and_each_task_is_one_module_with_a_name(self) -> None:
        tasks = yaml.safe_load((ROLE / "tasks/main.yml").read_text())
        self.assertGreater(len(tasks), 5)
        for task in tasks:
            modules = [key.removeprefix("ansible.builtin.") for key in task if key.startswith("ansible.builtin.")]
            self.assertEqual(len(modules), 1, task)
            self.assertIn(modules[0], MODULES)
            self.assertRegex(task["name"], r"^[A-Z]")

    def test_the_table_of_variables_says_what_the_role_has(self) -> None:
        tasks = (ROLE / "tasks/main.yml").read_text()
        registered = set(re.findall(r"register: (\w+)", tasks))
        used = set(re.findall(r"\bgpu_handoff_\w+", tasks)) - registered
        table = set(re.findall(r"^\| `(gpu_handoff_\w+)`", (CONTRIB / "ansible/README.md").read_text(), re.MULTILINE))
        self.assertEqual(used, table)
        defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
        self.assertEqual(set(defaults) | {"gpu_handoff_deb"}, table)

    def test_what_the_role_calls_is_a_command_of_ours(self) -> None:
        for task in yaml.safe_load((ROLE / "tasks/main.yml").read_text()):
            argv = task.get("ansible.builtin.command", {}).get("argv", [""])
            if argv[0] == "gpu-handoff":
                self.assertIn(argv[1], ("attach", "check"))

    def test_panels_do_not_lie_on_each_other(self) -> None:
        panels = json.loads((CONTRIB / "grafana/gpu-handoff.json").read_text())["panels"]
        taken: set = set()
        for panel in panels:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            self.assertFalse(cells & taken, panel["title"])
            self.assertLessEqual(at["x"] + at["w"], 24)
            taken |= cells


if __name__ == "__main__":
    unittest.main()
