"""Problems with answers that can be checked: generated ones, files of them, and who judges."""
