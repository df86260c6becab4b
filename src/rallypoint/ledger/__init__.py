"""What must outlive a coordinator, kept in an engine that offers registers."""
