"""From what was recorded, column by column, to tensors in which each number stands once."""
