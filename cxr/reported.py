"""The report's numbers, in one place. A test holds them to the report's text."""

IMAGES = 5856
AVERAGE_SIZE = (1500, 1700)  # pixels; the report does not say which is the width
VALIDATION_SHARE = 0.2
PNEUMONIA_SHARE = 0.63
REPORTED = {  # accuracy on the test images, epochs, parameters; rows of the confusion matrix: true
    "02_cnn1_2class": {
        "model": "CNN_1, 2 classes", "classes": 2, "accuracy": 0.82, "epochs": 8,
        "parameters": 266_306, "trainable": 266_306, "confusion": ((123, 111), (2, 388)),
    },
    "03_cnn1_3class": {
        "model": "CNN_1, 3 classes", "classes": 3, "accuracy": 0.71, "epochs": 8,
        "parameters": 352_835, "trainable": 352_835,
    },
    "04_inceptionv3": {
        "model": "InceptionV3, 3 classes", "classes": 3, "accuracy": 0.75, "epochs": 10,
        "parameters": 34_943_523, "trainable": 13_140_739,
    },
    "05_cnn1_transfer": {
        "model": "CNN_1 transfer, 3 classes", "classes": 3, "accuracy": 0.84, "epochs": 29,
        "parameters": 222_883, "trainable": 129_635,
    },
}  # fmt: skip
_LAYERS = {  # Figs. 3, 8 and 11: layer, output shape, parameters
    "02_cnn1_2class": [  # Fig. 3
        ("InputLayer", (224, 224, 3), 0), ("RandomFlip", (224, 224, 3), 0),
        ("Conv2D", (222, 222, 32), 896), ("MaxPooling2D", (111, 111, 32), 0),
        ("Conv2D", (109, 109, 64), 18_496), ("MaxPooling2D", (54, 54, 64), 0),
        ("Conv2D", (52, 52, 128), 73_856), ("MaxPooling2D", (26, 26, 128), 0),
        ("Flatten", (86_528,), 0), ("Dropout", (86_528,), 0), ("Dense", (2,), 173_058),
    ],
    "04_inceptionv3": [  # Fig. 8
        ("InputLayer", (224, 224, 3), 0), ("RandomFlip", (224, 224, 3), 0),
        ("Functional", (5, 5, 2048), 21_802_784), ("Flatten", (51_200,), 0),
        ("Dense", (256,), 13_107_456), ("Dropout", (256,), 0), ("Dense", (128,), 32_896),
        ("Dropout", (128,), 0), ("Dense", (3,), 387),
    ],
    "05_cnn1_transfer": [  # Fig. 11
        ("InputLayer", (224, 224, 3), 0), ("Functional", (26, 26, 128), 93_248),
        ("Conv2D", (24, 24, 32), 36_896), ("MaxPooling2D", (12, 12, 32), 0),
        ("Conv2D", (10, 10, 64), 18_496), ("MaxPooling2D", (5, 5, 64), 0),
        ("Conv2D", (3, 3, 128), 73_856), ("MaxPooling2D", (1, 1, 128), 0),
        ("Flatten", (128,), 0), ("Dropout", (128,), 0), ("Dense", (3,), 387),
    ],
}  # fmt: skip
for _name, _layers in _LAYERS.items():
    REPORTED[_name]["layers"] = _layers
