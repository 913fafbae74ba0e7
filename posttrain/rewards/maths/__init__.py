"""Reading and comparing final answers: LaTeX to shapes (numbers, tuples, regions, matrices, words), then equality."""
