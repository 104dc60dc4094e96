"""The paper's protocol as data, run in stages that resume, down to a report."""
