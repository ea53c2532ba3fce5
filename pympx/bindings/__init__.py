"""The Cython skin: classes whose hot methods decode a buffer and make one engine call. api/ adds the cold methods."""
