import nibabel as nib
import numpy as np
import pytest
import torch

from cspine_utils import demo, stacks
from cspine_utils.errors import StackError
from cspine_utils.rsna import RsnaDataset
from cspine_utils.volume import Volume


def tall(slices, h=6, w=8, seed=1):
    """A volume of random HU and a mask that shows C1-C7 from slice 3 to the third last."""
    generator = np.random.default_rng(seed)
    volume = Volume(generator.integers(-1000, 2000, (slices, h, w), dtype=np.int16), np.eye(4))
    mask = np.zeros(volume.shape, np.uint8)
    for i in range(3, slices - 3):
        mask[i, 1:4, 2:6] = 1 + (i - 3) * 7 // (slices - 6)
    mask[slices - 2 :] = 8  # T1: must not count
    mask[slices - 3, 0, 0] = 9
    return volume, mask


def test_slices_span_c1_to_c7_only():
    _, mask = tall(50)
    positions = stacks.cervical_slices(mask)
    assert positions.shape == (210,) and positions[0] == 3 and positions[-1] == 46
    assert np.allclose(np.diff(positions), 43 / 209)
    assert stacks.cervical_slices(mask, count=44).tolist() == list(range(3, 47))


@pytest.mark.parametrize("labels", [[], [8, 9], [3]])
def test_masks_without_an_extent(labels):
    mask = np.zeros((9, 4, 5), np.uint8)
    for i, label in enumerate(labels):
        mask[4 + i, 1, 2] = label
    with pytest.raises(StackError, match="C1"):
        stacks.cervical_slices(mask)


def the_seeds_frames(hu, mask, first, last):
    """The seed's recipe in its own numbering: files count from 1, every odd file n gives one six-channel array."""
    frames = []
    for n in range(1, last - first + 2, 2):
        channels = []
        for neighbour in (n - 2, n - 1, n, n + 1, n + 2):
            neighbour = min(max(neighbour, 1), last - first + 1)
            channels.append(hu[first + neighbour - 1].astype(np.float32))
        channels.append(mask[first + n - 1].astype(np.float32))
        frames.append(channels)
    return np.array(frames)


def test_frames_equal_the_seeds_where_the_neck_has_210_slices():
    volume, mask = tall(216)
    stack = stacks.six_channel(volume, mask)
    assert stack.dtype == np.float32 and stack.shape == (105, 6, 6, 8)
    assert np.array_equal(stack, the_seeds_frames(volume.hu, mask, 3, 212))


def test_borders_repeat_and_never_wrap():
    volume, mask = tall(216)
    volume.hu[212] = 1999  # the last slice of the neck: index -1 of the 210
    stack = stacks.six_channel(volume, mask)
    first, last = stack[0], stack[-1]
    assert np.array_equal(first[0], volume.hu[3]) and np.array_equal(first[1], volume.hu[3])
    assert np.array_equal(first[3], volume.hu[4])
    assert (last[3] == 1999).all() and (last[4] == 1999).all() and not (last[2] == 1999).any()
    assert not (stack[:103] == 1999).all(axis=(2, 3)).any(), "only frames at the border may show the last slice"


def test_few_slices_are_interpolated_between_neighbours():
    volume, mask = tall(20)
    hu, labels = stacks.resample_slices(volume, mask)
    position = stacks.cervical_slices(mask)
    i = 100
    below, share = int(position[i]), position[i] % 1
    expected = volume.hu[below] * (1 - share) + volume.hu[below + 1] * share
    assert np.abs(hu[i] - expected).max() <= 0.51
    assert np.array_equal(labels[i], mask[int(position[i] + 0.5)])
    assert set(np.unique(labels)) <= set(np.unique(mask))


def test_in_plane_resize_keeps_places_and_invents_no_label():
    hu = np.zeros((12, 40, 60), np.int16)
    mask = np.zeros((12, 40, 60), np.uint8)
    hu[:, 8:16, 30:45] = 1000  # rows 1/5 to 2/5, columns 1/2 to 3/4
    mask[2:10, 8:16, 30:45] = np.arange(1, 9)[:, None, None].clip(max=7)
    stack = stacks.six_channel(Volume(hu, np.eye(4)), mask, frames=4, size=(20, 30))
    assert stack.shape == (4, 6, 20, 30)
    assert (
        (stack[:, 2, 5:7, 17:21] == 1000).all()
        and (stack[:, 2, 11:, :] == 0).all()
        and (stack[:, 2, :, :13] == 0).all()
    )
    assert (stack[0, 5] == 1).sum() == 4 * 7
    rows, columns = np.nonzero(stack[0, 5])
    assert (rows.min(), rows.max()) == (4, 7) and columns.min() == 15
    assert set(np.unique(stack[:, 5])) <= set(range(8))


def test_mask_of_another_shape():
    volume, mask = tall(30)
    with pytest.raises(StackError, match=r"\(29, 6, 8\).*\(30, 6, 8\)"):
        stacks.six_channel(volume, mask[:-1])


@pytest.mark.parametrize("size", [0, -4, 16.0, (8, 8, 8), "64", (8, 0)])
def test_sizes_that_cannot_be(size):
    with pytest.raises(StackError, match="size: found"):
        stacks.six_channel(*tall(30), size=size)


def test_counts_and_windows_that_cannot_be():
    volume, mask = tall(30)
    for frames in (0, -1, 2.5):
        with pytest.raises(StackError, match="frames: found"):
            stacks.six_channel(volume, mask, frames=frames)
    for count in (0, 1, 2.0):
        with pytest.raises(StackError, match="count: found"):
            stacks.cervical_slices(mask, count=count)
    with pytest.raises(StackError, match="'lung'; expected bone, soft, wide"):
        stacks.normalise(stacks.six_channel(volume, mask, frames=2), window="lung")
    assert stacks.six_channel(volume, mask, frames=1, size=np.int64(5)).shape == (1, 6, 5, 5)


def test_windows_in_numbers():
    hu = np.array([-500, 400, 850, 1300, 3000], float)
    assert stacks.apply_window(hu, 400, 1800).tolist() == [0, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_normalise_windows_hu_and_scales_labels(kind):
    stack = np.zeros((1, 6, 1, 3), np.float32)
    stack[0, :5] = [-900, 400, 1300]
    stack[0, 5] = [0, 7, 9]
    out = np.asarray(stacks.normalise(kind(stack)))
    for channel in (0, 4):
        assert out[0, channel, 0] == pytest.approx((np.array([0, 0.5, 1]) - 0.15) / 0.16, abs=1e-5)
    expected = (np.array([0, 1, 0]) - 0.012) / 0.093
    assert out[0, 5, 0] == pytest.approx(expected, abs=1e-5), "C7 is 1 before scaling, thoracic labels are 0"
    assert stack[0, 0, 0].tolist() == [-900, 400, 1300], "the input stays as it is"


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def test_scaling_constants_are_those_of_the_synthetic_cohort():
    x = demo.easy_studies(3, seed=7, size=64).tensors[0]
    slices, masks = x[:, :, :5], x[:, :, 5]
    assert abs(float(slices.mean())) < 0.3 and 0.8 < float(slices.std()) < 1.25
    assert abs(float(masks.mean())) < 0.3 and 0.7 < float(masks.std()) < 1.3


def test_fingerprint_tells_equal_data_from_other_data(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    stacks.prepare(dataset, dataset.studies[:3], store, size=8, count=12, progress=False)
    labels = dataset.labels.iloc[:3]
    relabelled = labels.copy()
    relabelled.iloc[0, 0] = 1
    fingerprints = [
        stacks.StackDataset(store, labels).fingerprint,
        stacks.StackDataset(store, labels.iloc[::-1]).fingerprint,
        stacks.StackDataset(store, labels.iloc[:2]).fingerprint,
        stacks.StackDataset(store, relabelled).fingerprint,
        stacks.StackDataset(store, labels, window="soft").fingerprint,
        stacks.StackDataset(store, labels, blank_mask=True).fingerprint,
    ]
    assert len(set(fingerprints)) == 6
    assert stacks.StackDataset(store, labels.copy()).fingerprint == fingerprints[0]


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_store_gives_back_the_studys_stack(rsna_folder, store):
    from cspine_utils.dicom import read_series
    from cspine_utils.nifti import read_mask

    dataset = RsnaDataset(rsna_folder)
    table = stacks.prepare(dataset, dataset.studies, store, size=8, count=12, progress=False)
    assert table["status"].tolist() == ["made", "made", "made", "skipped"]
    assert "no label map" in table["reason"].iloc[3]
    usable = dataset.labels[table["status"].isin(["made", "kept"]).to_numpy()]
    samples = stacks.StackDataset(store, usable)
    study = dataset.studies[1]  # stored feet -> head
    volume = read_series(dataset.series_dir(study))
    direct = stacks.six_channel(volume, read_mask(dataset.mask_path(study), volume), frames=6, size=8)
    x, y = samples[1]
    assert len(samples) == 3 and x.dtype == torch.float32 and y.tolist() == [0, 0, 0, 0, 1, 0, 0, 1]
    assert np.array_equal(x.numpy(), stacks.normalise(direct))
    assert len(x[:, -1].unique()) == len(np.unique(direct[:, -1])) > 3
    blank = stacks.StackDataset(store, usable, blank_mask=True)[1][0]
    assert torch.equal(blank[:, -1].unique(), x[:, -1].min()[None]) and torch.equal(blank[:, :5], x[:, :5])


def test_prepare_resumes_without_redoing(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    args = {"size": 8, "count": 12, "progress": False}
    stacks.prepare(dataset, dataset.studies, store, **args)
    before = contents(store)
    first, second, third = (store / f"{s}.npz" for s in dataset.studies[:3])
    kept = third.stat().st_mtime_ns
    first.unlink()
    second.write_bytes(before[second.name][:200])  # damaged
    table = stacks.prepare(dataset, dataset.studies, store, **args)
    assert table["status"].tolist() == ["made", "made", "kept", "skipped"]
    assert contents(store) == before and third.stat().st_mtime_ns == kept
    assert stacks.prepare(dataset, dataset.studies, store, **args | {"size": 9})["status"].iloc[0] == "made"


def test_a_damaged_store_is_said_when_loading(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    stacks.prepare(dataset, dataset.studies[:1], store, size=8, count=12, progress=False)
    path = store / f"{dataset.studies[0]}.npz"
    content = bytearray(path.read_bytes())
    content[300] ^= 255
    path.write_bytes(content)
    with pytest.raises(StackError, match="delete it and run stacks.prepare again"):
        stacks.StackDataset(store, dataset.labels.iloc[:1])[0]


def test_a_mirrored_label_map_does_not_enter_the_store(rsna_folder, store):
    """Its header lies on the CT's grid; only the bone under the labels tells."""
    dataset = RsnaDataset(rsna_folder)
    path = dataset.mask_path(dataset.studies[1])
    image = nib.load(path)
    turned = nib.Nifti1Image(np.asarray(image.dataobj)[::-1, ::-1].copy(), image.affine)
    path.unlink()
    nib.save(turned, path)
    table = stacks.prepare(dataset, dataset.studies[:3], store, size=8, count=12, progress=False)
    assert table["status"].tolist() == ["made", "failed", "made"]
    assert "flipped h and w" in table["reason"].iloc[1]


def test_prepare_notices_a_changed_source(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    args = {"size": 8, "count": 12, "progress": False}
    stacks.prepare(dataset, dataset.studies[:2], store, **args)
    path = dataset.mask_path(dataset.studies[0])
    content = bytearray(path.read_bytes())
    path.write_bytes(content)  # same bytes, new time: a source that may have changed is read again
    table = stacks.prepare(dataset, dataset.studies[:2], store, **args)
    assert table["status"].tolist() == ["made", "kept"]


def test_one_bad_study_does_not_stop_the_cohort(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    next(dataset.series_dir(dataset.studies[0]).glob("5.dcm")).unlink()
    dataset.mask_path(dataset.studies[2]).write_text("not a label map")
    table = stacks.prepare(dataset, dataset.studies, store, size=8, count=12, progress=False)
    assert table["status"].tolist() == ["failed", "made", "failed", "skipped"]
    assert "1 slice(s) missing" in table["reason"].iloc[0] and "cannot be read" in table["reason"].iloc[2]
    assert [p.stem for p in store.iterdir()] == [dataset.studies[1]], "nothing half-written is left"
    with pytest.raises(StackError, match=dataset.studies[0]):
        stacks.StackDataset(store, dataset.labels)


def test_two_sets_hold_every_usable_study_once_and_depend_on_the_seed_alone(rsna_folder, tmp_path):
    dataset = RsnaDataset(rsna_folder)
    train, validation, report = stacks.two_sets(dataset, tmp_path, size=8, validation_share=0.34, seed=1)
    usable = [study for study in dataset.studies if dataset.mask_path(study) is not None]
    assert sorted(train.studies + validation.studies) == sorted(usable) and len(validation) == 2
    assert (report["status"] == "made").sum() == len(usable) and (report["status"] == "skipped").sum() == 1
    again, _, report = stacks.two_sets(dataset, tmp_path, size=8, validation_share=0.34, seed=1)
    assert again.studies == train.studies and (report["status"] == "kept").sum() == len(usable)
    others = {
        tuple(stacks.two_sets(dataset, tmp_path, size=8, validation_share=0.34, seed=s)[0].studies) for s in range(8)
    }
    assert len(others) > 1


def test_odd_folders_are_listed_and_odd_settings_refused(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    for study, name in zip(dataset.studies, ("13.dcm", "notes.txt"), strict=False):
        (dataset.series_dir(study) / name).symlink_to("nowhere")
    studies = [dataset.studies[0], "1.2.3", dataset.studies[1]]
    table = stacks.prepare(dataset, studies, store, size=8, count=12, progress=False)
    assert table["status"].tolist() == ["failed", "failed", "made"]
    assert "a link that leads nowhere" in table["reason"].iloc[0] and "no study" in table["reason"].iloc[1]
    occupied = store / "file"
    occupied.write_text("")
    for options in ({"size": 0}, {"count": 1}, {"out": occupied}):
        with pytest.raises(StackError):
            stacks.prepare(dataset, studies, **{"out": store, "size": 8, "count": 12, "progress": False} | options)
