"""What two containers see of one Volume."""

from pathlib import Path

from tests.fakes.modal.volume_view import VolumeView


def views_of(tmp_path: Path, *, read_only: bool = False) -> tuple[VolumeView, VolumeView]:
    committed = tmp_path / "committed"
    (committed / "kept").mkdir(parents=True)
    (committed / "kept" / "old.txt").write_text("old")
    first = VolumeView(committed, tmp_path / "first", "/first", read_only=read_only)
    return first, VolumeView(committed, tmp_path / "second", "/second", read_only=read_only)


def test_a_change_in_place_stays_here_until_it_is_committed(tmp_path: Path) -> None:
    here, there = views_of(tmp_path)

    with (here.root / "kept" / "old.txt").open("a") as appended:
        appended.write(" and new")
    there.reload()
    before = (there.root / "kept" / "old.txt").read_text()
    here.commit()
    there.reload()

    assert before == "old"
    assert (there.root / "kept" / "old.txt").read_text() == "old and new"


def test_a_removal_travels_and_a_local_change_survives_a_reload(tmp_path: Path) -> None:
    here, there = views_of(tmp_path)
    (there.root / "mine.txt").write_text("uncommitted")

    (here.root / "kept" / "old.txt").unlink()
    here.commit()
    there.reload()

    assert not (there.root / "kept" / "old.txt").exists()
    assert (there.root / "mine.txt").read_text() == "uncommitted"
    assert there.changed() == {"mine.txt"}


def test_the_last_of_two_writers_of_a_file_wins(tmp_path: Path) -> None:
    here, there = views_of(tmp_path)
    (here.root / "kept" / "old.txt").write_text("here")
    (there.root / "kept" / "old.txt").write_text("there")

    there.commit()
    here.commit()
    there.reload()

    assert (there.root / "kept" / "old.txt").read_text() == "here"


def test_a_read_only_view_shares_the_file_and_still_sees_what_is_committed(tmp_path: Path) -> None:
    view, _ = views_of(tmp_path, read_only=True)
    assert (view.root / "kept" / "old.txt").samefile(view.committed / "kept" / "old.txt")

    (view.committed / "new.txt").write_text("new")
    view.reload()

    assert (view.root / "new.txt").read_text() == "new"
