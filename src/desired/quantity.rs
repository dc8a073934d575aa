//! Quantities as the API server writes them.
