"""Mount points stay while any fake server needs them."""

import subprocess
from pathlib import Path

import pytest

from tests.fakes.modal.launch import MountPoints, reason_unavailable


def test_the_last_server_that_holds_a_mount_point_removes_it(tmp_path: Path) -> None:
    first, second, path = MountPoints(), MountPoints(), tmp_path / "data" / "files"
    first.hold(path)
    second.hold(path)
    first.hold(path)

    first.release()
    assert path.is_dir()

    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_existed_before_stays(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    points = MountPoints()
    points.hold(tmp_path / "mnt" / "files")

    points.release()

    assert list(tmp_path.iterdir()) == [tmp_path / "mnt"]
    assert list((tmp_path / "mnt").iterdir()) == []


@pytest.mark.skipif(reason_unavailable() is not None, reason=str(reason_unavailable()))
def test_a_container_keeps_its_volume_while_its_mount_point_is_to_be_removed(tmp_path: Path) -> None:
    points, point, volume = MountPoints(), tmp_path / "data", tmp_path / "volume"
    points.hold(point)
    volume.mkdir()
    script = 'mount --bind "$1" "$2"; echo mounted; read go; echo kept > "$2/file"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh", str(volume), str(point)]

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as container:
        assert container.stdout is not None
        assert container.stdout.readline() == "mounted\n"
        with pytest.raises(OSError, match="not empty"):
            point.rmdir()
        container.communicate("go\n")

    assert container.returncode == 0
    assert (volume / "file").read_text() == "kept\n"
    points.release()
    assert not point.exists()
