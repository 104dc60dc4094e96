def render(results, out):
    return out / "report.html"
