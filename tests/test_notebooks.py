"""Every notebook runs from top to bottom, and is committed with its outputs."""

import pathlib
import subprocess
import sys

import nbformat
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / 'notebooks').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_from_top_to_bottom(path, tmp_path):
  command = [sys.executable, '-m', 'IPython', '--no-banner', '--colors=NoColor', '--ipython-dir', tmp_path, path]
  run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert run.returncode == 0 and 'Traceback' not in run.stdout, run.stdout[-3000:] + run.stderr[-3000:]
  assert 'single-task' in run.stdout  # the leaderboard


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_kept(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert all(cell.execution_count for cell in cells)
  outputs = [output for cell in cells for output in cell.outputs]
  assert any('image/png' in output.get('data', {}) for output in outputs)
  assert not any(output.output_type == 'error' for output in outputs)
