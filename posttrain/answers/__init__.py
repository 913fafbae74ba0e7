"""Reading and comparing final answers: notation -> shape (expressions, tuples, regions, words, ...) -> equality."""
