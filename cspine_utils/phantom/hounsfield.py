"""Hounsfield units of what is not bone.

After Hounsfield-scale tables: muscle 45-60, fat -120 to -90, CSF about 10, cord 30-40, blood 45 (200-400 with
contrast). Discs 70-110, thyroid gland 90-120 (iodine), and everything else: textbook values.
"""

AIR_HU, LUNG_HU, SKIN_HU, FAT_HU, MUSCLE_HU, BLOOD_HU = -1000.0, -850.0, 35.0, -105.0, 53.0, 45.0
THYROID_HU, GLAND_HU, PAROTID_HU, WALL_HU, PLATYSMA_HU = 104.0, 48.0, 5.0, 48.0, 20.0
BRAIN_HU, CORD_HU, CSF_HU, EPIDURAL_HU, DISC_HU, LIGAMENT_HU = 34.0, 36.0, 10.0, -70.0, 88.0, 60.0
CARTILAGE_HU, CALCIUM_HU, PLAQUE_HU, SINUS_WALL_HU = 105.0, 460.0, 700.0, 550.0
ENAMEL_HU, DENTINE_HU, METAL_HU = 2300.0, 1600.0, 3071.0

#: Collar and table.
FOAM_HU, COLLAR_HU, CARBON_HU, TABLE_FOAM_HU = -930.0, 30.0, -240.0, -940.0
