"""Digests of files and directories: what they depend on, and what not."""

from rgtg import storage
from rgtg.digests import content_digest


def test_digest_changes_with_names_and_contents_alone(root):
    uri = storage.join(root, "model")

    def write(name, data):
        storage.write_bytes(storage.join(uri, name), data)

    write("a", b"1")
    write("sub/b", b"2")
    digests = [content_digest(uri)]
    assert len(digests[0]) == 64
    write("_hidden", b"x")
    write("a", b"1")  # another time, the same content
    assert content_digest(uri) == digests[0]
    large = b"1" * (5 << 20) if storage.is_local(uri) else b"1"  # of more than one chunk
    for name, data in (("a", b"one"), ("sub/b", b"3"), ("c", b""), ("d", large)):
        write(name, data)
        digests.append(content_digest(uri))
    assert len(set(digests)) == len(digests)


def test_digest_is_the_same_elsewhere(tmp_path, s3):
    for uri in (str(tmp_path / "one"), str(tmp_path / "two" / "deep"), f"{s3}/three"):
        storage.write_bytes(storage.join(uri, "a"), b"1")
        storage.write_bytes(storage.join(uri, "b/c"), b"2")
    assert content_digest(str(tmp_path / "one")) == content_digest(str(tmp_path / "two/deep"))
    assert content_digest(str(tmp_path / "one")) == content_digest(f"{s3}/three")
    assert content_digest(str(tmp_path / "one/a")) != content_digest(str(tmp_path / "one"))
