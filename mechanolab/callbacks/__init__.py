"""Lightning callbacks: exact resume, figures, run record, prediction writer."""
