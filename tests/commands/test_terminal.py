"""What names and headers hold never reaches the terminal as it is."""

from __future__ import annotations

import re

from made_series import make_series
from processes import save


def test_control_characters_of_names_and_headers_never_reach_the_terminal(medsr_process, bundle, tmp_path):
    """A terminal would clear the screen, or show a line that is none of ours; and no formula reaches a table."""
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "=a\x1b[2J\u202e.nii.gz")
    escape = "\x1b[2J\nmedsr: all is well"
    (tmp_path / "in" / f"b{escape}.nii.gz").write_text("no volume")
    make_series(tmp_path / "study", lambda n, header: setattr(header, "SeriesDescription", "x\x1b[2J\u202e"))
    (tmp_path / "study" / "1.dcm").write_bytes(b"damaged")
    results = [
        medsr_process("upscale", "in", "out", "--bundle", bundle),
        medsr_process("inspect", "in", "--no-timing"),
        medsr_process("inspect", "study", "--no-timing"),
        medsr_process("upscale", "study", "series", "--bundle", bundle),
        medsr_process("upscale", "in", "again", "--bundle", bundle, "--verbose"),
        medsr_process("inspect", f"in/b{escape}.nii.gz", "--verbose"),
        # words that Fire repeats, also in quotes, with its usage and its help
        medsr_process("upscale", "in", "out", "x", f"y'{escape}", f"--z{escape}"),
        medsr_process(f"up{escape}", "--help"),
        medsr_process("upscale", "--help", f"a{escape}"),
    ]
    assert "Traceback" in results[4].err and "Traceback" in results[5].err
    assert [result.code for result in results[6:]] == [2, 2, 0], results[6:]
    terminal = re.compile("[\x00-\x09\x0b-\x1f\u202e]|^medsr: all is well", re.MULTILINE)
    for result in results:
        assert not terminal.search(result.out + result.err), result
    table = (tmp_path / "out" / "status.csv").read_text()
    assert "\x1b" not in table and "\n'=a\\x1b[2J" in table.replace('"', ""), table
