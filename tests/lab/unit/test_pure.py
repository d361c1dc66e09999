"""What can be looked at without booting anything; takes a second."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path

from lab import mirror, options, qemu, scenarios
from lab.card import functions, hda, pci, server
from lab.images import Images

IMAGES = Images(
    toolbox=Path("/c/toolbox"), kernel=Path("/c/k/vmlinuz"),
    initrd=Path("/c/k/initrd"), version="6.12",
    disks=(Path("/c/u/userland.erofs"), Path("/c/k/modules.erofs")),
)


class Mirror(unittest.TestCase):
    def test_one_line_style_gives_the_main_archive_only(self) -> None:
        text = """
            # deb http://old.example/debian trixie main
            deb http://other.example/apt any-suite main
            deb [arch=amd64 signed-by=/k] http://m.example/debian trixie main
            deb http://m.example/debian-security trixie-security main
        """
        self.assertEqual(
            list(mirror.one_line_style(text)), ["http://m.example/debian"])

    def test_deb822_style_gives_the_main_archive_only(self) -> None:
        text = """Types: deb
URIs: http://m.example/security
Suites: bookworm-security

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm

Types: deb deb-src
# URIs: http://comment.example/debian
URIs: http://m.example/debian
Suites: bookworm bookworm-updates
"""
        self.assertEqual(
            list(mirror.deb822_style(text)), ["http://m.example/debian"])


class Header(unittest.TestCase):
    def test_every_scenario_of_the_tree_says_what_it_shows(self) -> None:
        for one in scenarios.all_of_them():
            self.assertTrue(one.shows, one.name)

    def test_switches_and_tier_are_read_from_the_top_comment(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "two.sh"
            path.write_text(
                "#!/bin/sh\n# Both cards.\n# More text.\n"
                "# lab: --cards 2 --stub a=1 --timeout 5\n# tier: full\n"
                "echo\n# lab: --cards 9\n")
            one = scenarios.read(path)
        self.assertEqual(one.shows, "Both cards.")
        self.assertEqual((one.tier, one.timeout), ("full", 5.0))
        self.assertEqual(one.boot, options.Options(cards=2, stub=("a=1",)))


class CommandLine(unittest.TestCase):
    def words(self, **switches: object) -> list[str]:
        boot = options.Options(**switches)  # type: ignore[arg-type]
        return qemu.command(boot, IMAGES, Path("/c"), "tcg")

    def test_sixteen_cards_leave_the_high_slots_alone(self) -> None:
        ports = [word for word in self.words(cards=16)
                 if word.startswith("pcie-root-port")]
        self.assertEqual(len(ports), 16)
        self.assertIn("addr=0x13.0", ports[-1])

    def test_each_function_has_a_socket(self) -> None:
        text = " ".join(self.words(cards=2, functions=4))
        for card in range(2):
            for function in range(4):
                self.assertIn(f"/lab/card{card}.{function}.sock", text)

    def test_no_iommu_device_without_iommu(self) -> None:
        self.assertNotIn("iommu", " ".join(self.words(iommu="none")))


class Card(unittest.TestCase):
    def setUp(self) -> None:
        self.card = [functions.make(kind, f"card0.{kind}") for kind in (0, 1)]

    def test_identifiers_and_classes(self) -> None:
        gpu, audio = self.card
        self.assertEqual(gpu.read_config(0, 4), b"\xde\x10\x04\x22")
        self.assertEqual(gpu.read_config(9, 3), b"\x00\x00\x03")
        self.assertEqual(audio.read_config(0, 4), b"\xde\x10\xef\x1a")
        self.assertEqual(audio.read_config(9, 3), b"\x00\x03\x04")

    def test_bar_gives_its_size_when_ones_are_written(self) -> None:
        gpu = self.card[0]
        gpu.write_config(pci.PCI_BASE_ADDRESS_0, b"\xff" * 4)
        self.assertEqual(gpu.read_config(pci.PCI_BASE_ADDRESS_0, 4),
                         (0x100000000 - (16 << 20)).to_bytes(4, "little"))

    def test_flr_resets_unless_it_is_made_not_to(self) -> None:
        gpu = self.card[0]
        flr = pci.EXP_DEVCTL_FLR.to_bytes(2, "little")
        gpu.write_config(pci.EXP_DEVCTL, flr)
        self.assertEqual(gpu.resets, 1)
        self.assertEqual(server.obey([self.card], "card0 noflr"), "ok")
        gpu.write_config(pci.EXP_DEVCTL, flr)
        self.assertEqual(gpu.resets, 1)

    def test_dead_reads_ones_and_well_undoes_it(self) -> None:
        gpu = self.card[0]
        server.obey([self.card], "card0 dead")
        self.assertEqual(gpu.read_config(0, 4), b"\xff" * 4)
        self.assertEqual(gpu.read_bar(0, 0, 4), b"\xff" * 4)
        server.obey([self.card], "card0 well")
        self.assertEqual(gpu.read_bar(0, 0, 4), b"\xa1\x00\x20\xb7")

    def test_what_cannot_be_done_is_said(self) -> None:
        for line in ("", "card0", "card1 dead", "cardx dead", "card0 slow x"):
            self.assertRegex(server.obey([self.card], line), "^error")

    def test_codec_has_one_output_pin(self) -> None:
        self.assertEqual(hda.codec(0x000F0000), hda.CODEC_ID)
        self.assertEqual(hda.codec(0x003F0009), 0x00400381)


if __name__ == "__main__":
    unittest.main()
