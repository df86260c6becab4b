"""Where everything is kept that must outlive a coordinator: the contract, and the engines."""
