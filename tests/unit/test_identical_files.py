from reducr.data.io.identical_files import same_files


def test_files_with_the_same_bytes_have_one_number(tmp_path):
    contents = [b"a", b"b", b"a", bytes(5000) + b"x", bytes(5000) + b"y", bytes(5000) + b"x", b"", b"aa"]
    paths = [tmp_path / str(place) for place in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    numbers = same_files([*paths, tmp_path / "missing", tmp_path / "nowhere"]).tolist()
    assert numbers[0] == numbers[2]
    assert numbers[3] == numbers[5]
    assert len(set(numbers)) == 8
    assert same_files([]).tolist() == []
