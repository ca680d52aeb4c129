"""Packaging of ``sb3_diffusion``; tool settings live in ``pyproject.toml``."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# Returns of MuJoCo tasks depend on the simulator, so every extra that brings MuJoCo asks for the same minor release.
# (Release 4.0 moreover breaks dm-control 1.0.50.)
MUJOCO = "mujoco>=3.17,<3.18"

EXTRAS = {
    "mujoco": ["gymnasium[mujoco]>=1,<2", MUJOCO],
    "dmc": ["dm-control>=1.0.50", "shimmy>=2.0.1,<3", "imageio>=2.34", MUJOCO],
    # Never huggingface_sb3: it needs huggingface-hub<1 and makes pip fall back to a release with a broken cloudpickle pin.
    # rl-zoo3 brings its successor.
    # pandas reads training returns and writes the report of -optimize, whose workers filelock keeps apart, as it does runs;
    # matplotlib draws, scipy has the intervals.
    "zoo": [
        "rl-zoo3>=2.9.2,<3",
        "huggingface-hub>=2,<3",
        "optuna>=5,<6",
        "filelock>=3.30",
        "pandas>=2.2,<4",
        "matplotlib>=3.8",
        "scipy>=1.15",
    ],
    # data sets; Minari's own package is for its downloads, Arrow and images
    "offline": ["h5py>=3.8"],
    "minari": ["h5py>=3.8", "minari[hdf5,hf]>=0.5.3,<0.6; python_version >= '3.11'"],
    "ogbench": ["ogbench>=1.2.2,<2", MUJOCO],
    # moviepy is what Stable-Baselines3's recorder needs, imageio-ffmpeg ours; Pillow writes titles; pygame draws the classic
    # control tasks.
    "video": ["moviepy>=2,<3", "imageio[ffmpeg]>=2.34", "pillow>=10.1", "gymnasium[classic-control]>=1,<2"],
    # zoo/benchmark.py: locks, checked files, statistics, page. Not rliable: release 1.2.0 needs arch<8, which does not work
    # with pandas 3.
    "benchmark": ["filelock>=3.30", "jsonschema>=4.20,<5", "arch>=8,<9", "scipy>=1.11", "Jinja2>=3.1,<4", "MarkupSafe>=2.1"],
    "ray": ["ray>=2.60,<3"],
    # Simulators of many environments. Each of the last two wants a MuJoCo of its own and a virtual environment for it. Isaac
    # Lab has no extra: its users bring it.
    "envpool": ["envpool>=1.2,<2; python_version >= '3.11'"],
    "mjlab": ["mjlab>=1.6,<2"],
    "playground": ["playground>=0.2,<0.3", "mujoco-mjx>=3.17,<3.18", "jax", MUJOCO],
    "tracking": ["wandb>=0.18,<1"],
    "tests": [
        "pytest>=8,<10",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "black>=25,<27",
        "ruff>=0.12",
        "mypy>=1.15,<3",
        "codespell>=2.3",
        "types-PyYAML",
        "types-jsonschema",
        # that an exported policy acts like the policy
        "onnx>=1.19",
        "onnxscript>=0.5",
        "onnxruntime>=1.23",
    ],
    # math-core converts formulas to MathML, ziamath has the font for them
    "docs": [
        "sphinx>=8,<10",
        "myst-parser>=4,<6",
        "furo>=2024.8.6",
        "sphinx-copybutton>=0.5",
        "math-core>=0.9,<1",
        "ziamath>=0.12,<1",
        "matplotlib>=3.8",
    ],
}
# Everything that touches an agent; "tracking" needs an account, "tests" and "docs" are for contributors.
EXTRAS["all"] = sorted(
    {requirement for name in ("mujoco", "dmc", "zoo", "offline", "benchmark", "video") for requirement in EXTRAS[name]}
)

setup(
    name="sb3_diffusion",
    version=(ROOT / "sb3_diffusion" / "version.txt").read_text(encoding="utf-8").strip(),
    description="Diffusion and flow policies for Stable-Baselines3",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    keywords="reinforcement-learning diffusion-policy flow-matching stable-baselines3 gymnasium pytorch",
    python_requires=">=3.10,<3.14",
    packages=[
        *find_packages(include=["sb3_diffusion", "sb3_diffusion.*"]),
        "sb3_diffusion_zoo",
        *(f"sb3_diffusion_zoo.{name}" for name in find_packages("zoo")),
        "sb3_diffusion_zoo.hyperparams",
    ],
    # The zoo is installed under a name of its own: nobody wants a top-level package called "zoo" in site-packages.
    package_dir={"sb3_diffusion_zoo": "zoo", "sb3_diffusion_zoo.hyperparams": "hyperparams"},
    package_data={
        "sb3_diffusion": ["py.typed", "*.pyi", "version.txt", "kernels/*.cpp"],
        "sb3_diffusion_zoo": ["py.typed"],
        "sb3_diffusion_zoo.benchmarking": ["data/*"],
        "sb3_diffusion_zoo.hyperparams": ["*.yml"],
    },
    install_requires=[
        "stable-baselines3>=2.9,<3",
        "torch>=2.8,<3",
        "gymnasium>=1,<2",
        "numpy>=1.26,<3",
        "tensorboard>=2.18",
        "cloudpickle>=2.2.1",
        "typing_extensions>=4.8",
        "tqdm>=4.65",
        "rich>=13",
    ],
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
