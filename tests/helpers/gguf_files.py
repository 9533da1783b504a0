"""Files of models that tests write."""

import gguf


def finish(writer: gguf.GGUFWriter) -> None:
    """Writes what a writer was given, and closes the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
