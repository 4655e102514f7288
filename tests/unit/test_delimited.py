import gzip
import re

import pytest

from reducr.data.io.delimited import delimited_rows


def rows_of(path, content, *, delimiter=",", quoting=True):
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return list(delimited_rows(path, delimiter=delimiter, quoting=quoting))


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("quoting", [True, False])
def test_cells_are_strings_as_they_are_written(tmp_path, name, end, quoting):
    content = end.join(["a,b", "NA,", "", " 1.50 ,é"])
    expected = [["a", "b"], ["NA", ""], [" 1.50 ", "é"]]
    assert rows_of(tmp_path / name, content, quoting=quoting) == expected
    assert rows_of(tmp_path / name, content + end, quoting=quoting) == expected


def test_quoted_cells_may_contain_delimiters_line_breaks_and_quotes(tmp_path):
    content = 'a,b\n"x,y","two\nlines ""quoted"""\n'
    assert rows_of(tmp_path / "rows", content) == [["a", "b"], ["x,y", 'two\nlines "quoted"']]


def test_without_quoting_a_quote_is_an_ordinary_character(tmp_path):
    content = 'a\tb\n"x\t5" y\n'
    assert rows_of(tmp_path / "rows", content, delimiter="\t", quoting=False) == [["a", "b"], ['"x', '5" y']]


def test_a_byte_order_mark_is_dropped(tmp_path):
    assert rows_of(tmp_path / "rows", b"\xef\xbb\xbfa,b\n1,2\n") == [["a", "b"], ["1", "2"]]


@pytest.mark.parametrize("content", ['a,b\n"x,y\n', 'a,b\n"x" y,z\n'])
def test_a_quote_that_is_not_closed_is_an_error(tmp_path, content):
    expected = re.escape(f"{tmp_path / 'rows'} cannot be parsed with quoting")
    with pytest.raises(ValueError, match=rf"{expected}.*datamodule\.quoting=false"):
        rows_of(tmp_path / "rows", content)


def test_another_encoding_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"rows is not UTF-8 .* Save it as UTF-8"):
        rows_of(tmp_path / "rows", "a,b\né,1\n".encode("latin-1"))


@pytest.mark.parametrize("content", [gzip.compress(b"a,b\n1,2\n")[:-9], b"no gzip"], ids=["cut off", "no gzip"])
def test_a_damaged_file_is_an_error(tmp_path, content):
    path = tmp_path / "rows.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"rows\.gz is truncated or damaged"):
        list(delimited_rows(path, delimiter=",", quoting=False))


def test_an_empty_file_has_no_rows(tmp_path):
    assert rows_of(tmp_path / "rows", "") == []


def test_cells_may_be_long(tmp_path):
    cell = "a b " * 40_000
    assert rows_of(tmp_path / "rows", f'a,b\n"{cell}",1\n')[1] == [cell, "1"]
