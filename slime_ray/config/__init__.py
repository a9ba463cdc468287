"""Every setting and its default. Nothing else in the library gives a setting a default value."""
