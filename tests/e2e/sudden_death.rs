//! Sudden death.
